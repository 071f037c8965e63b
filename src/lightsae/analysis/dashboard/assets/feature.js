// The page of one feature (or raw neuron): label and how it was tested, figures, contexts, effects, neighbours.
"use strict";
(function (ls) {
  const h = ls.h;
  const FEWER = 6;

  ls.featurePage = async function (main, population, number) {
    const place = population.place(number);
    if (place === undefined) {
      ls.fill(main, h("section.page", {}, h("h1", {}, `There is no ${population.one} ${number}`), h("p", {}, h("a", { href: `#/${population.name}` }, "Back to the list"))));
      ls.page = {};
      return;
    }
    const { row, tokens } = await population.load(number);
    document.title = `${population.one} ${number} · ${row.label === null ? "unlabelled" : ls.visibleText(row.label)}`;
    ls.fill(main, build(population, place, row, tokens));
    drawHistogram(main.querySelector(".histogram"), population, row);
    const [before, after] = neighbours(population, place);
    ls.page = {
      key(event) {
        if (event.target.closest("[role=tab]") || event.target.closest("input, select")) return false;
        if (event.key === "Escape") back(population);
        else if (event.key === "ArrowLeft" && before !== null) location.hash = population.href(before).slice(1);
        else if (event.key === "ArrowRight" && after !== null) location.hash = population.href(after).slice(1);
        else return false;
        return true;
      },
    };
  };

  function back(population) {
    location.hash = `#/${population.name}${ls.writeFilter(ls.listState(population.name).filter)}`;
  }

  // Previous and next as the list has them, where one comes from it.
  function neighbours(population, place) {
    const own = ls.listState(population.name);
    const at = own.rows ? own.rows.indexOf(place) : -1;
    if (at >= 0) own.active = at;
    const rows = at >= 0 ? [own.rows[at - 1], own.rows[at + 1]] : [place - 1, place + 1];
    return rows.map((one) => (one === undefined || one < 0 || one >= population.n ? null : population.number(one)));
  }

  function build(population, place, row, tokens) {
    const [before, after] = neighbours(population, place);
    const step = (number, words, sign) => (number === null ? h("span.icon.off", { "aria-hidden": "true" }, sign) : h("a.icon", { href: population.href(number), "aria-label": words, "data-tip": words }, sign));
    const title = population.title[0].toUpperCase() + population.title.slice(1);
    return h(
      "article.page.feature",
      {},
      h(
        "div.crumbs",
        {},
        h("a", { href: `#/${population.name}${ls.writeFilter(ls.listState(population.name).filter)}` }, population.many[0].toUpperCase() + population.many.slice(1)),
        h("span.steps", {}, step(before, "Previous (←)", "←"), step(after, "Next (→)", "→"))
      ),
      h("header.title", {}, h("p.kicker", {}, `${title} ${population.called(row.feature)}`, " ", ls.tier(row.tier), row.label_source && h("span.quiet", {}, ` label by ${ls.SOURCES[row.label_source] || row.label_source}`)), h("h1", {}, ls.label(row.label)), tested(row)),
      figures(row),
      h("div.columns", {}, h("div", {}, contexts(row, tokens), labels(row), steering(population, row)), h("div.side", {}, h("section.panel", {}, h("h2", {}, "Activations"), row.fires ? h("div.histogram") : h("p.quiet", {}, "It never fired."), row.fires ? h("p.quiet", {}, `${ls.count(row.fires)} firings; normalised units, logarithmic counts`) : null), effects(row), around(row), relatives(population, row)))
    );
  }

  // The figure of a sweep, where `lightsae steer` has left one beside the pages.
  function steering(population, row) {
    if (population.name !== "features") return null;
    const picture = h("img", { alt: `Effect and cost of steering with feature ${row.feature}, by dose`, src: `steering/${row.feature}.png` });
    const panel = h("section.panel.steering", { hidden: "" }, h("h2", {}, "Steering"), h("p.quiet", {}, "What adding the feature does, by dose, beside a random direction of the same norm, another feature and a prompt; bands are 95% intervals over prompts. The pane “wiring” asks each direction about the tokens that it promotes itself: any direction raises those."), picture);
    picture.addEventListener("load", () => panel.removeAttribute("hidden"));
    picture.addEventListener("error", () => panel.remove());
    return panel;
  }

  // The label's precision and recall, with their intervals where the table of labels has them.
  function tested(row) {
    if (row.label === null) return h("p.quiet", {}, (ls.TIERS[row.tier] || {}).words || "", ". What it may mean is not guessed here; candidates with their scores are below.");
    const test = row.labels.find((one) => one.test === "tokens" && one.label === row.label && one.source === row.label_source) || {};
    const one = (name, value, low, high, words) => {
      const bar = h("span.interval", { "aria-hidden": "true" }, h("span.reach"), h("span.point"));
      bar.style.setProperty("--low", low ?? value ?? 0);
      bar.style.setProperty("--high", high ?? value ?? 0);
      bar.style.setProperty("--value", value ?? 0);
      const interval = low === null || low === undefined ? "" : ` (${ls.number(low, 2)}–${ls.number(high, 2)})`;
      return h("div.tested", {}, h("strong", {}, name, " ", ls.number(value, 2)), h("span.quiet", {}, interval), bar, h("span.words", {}, words));
    };
    return h(
      "div.tests",
      {},
      one("Precision", row.precision, test.precision_low, test.precision_high, "of the tokens that the label predicts, the feature fires on this share"),
      one("Recall", row.recall, test.recall_low, test.recall_high, "of the tokens on which it fires, the label predicts this share"),
      h("p.quiet", {}, "On held-out documents that the label never saw, at the natural frequency of tokens; “fires” means above 10% of its maximum. In brackets: 95% intervals.")
    );
  }

  function figures(row) {
    const one = (name, value, tip) => value !== "–" && h("div.stat", { "data-tip": tip, tabindex: "0" }, h("dt", {}, name), h("dd", {}, value));
    const per = row.frequency ? `one in ${ls.count(Math.max(1, Math.round(1 / row.frequency)))} tokens` : "never";
    return h(
      "dl.stats",
      {},
      one("Density", ls.percent(row.frequency), `fires on ${per}`),
      one("Share of L0", ls.percent(row.l0_share), "its firings among the firings of all features"),
      one("Maximum", ls.number(row.max), "largest activation, in normalised units"),
      one("Mean", ls.number(row.mean), `mean activation where it fires; standard deviation ${ls.number(row.std)}`),
      one("Documents", ls.count(row.documents), `in which it fires; ${ls.percent(row.document_spread)} of the documents that as many random firings would reach`),
      ["system", "developer", "user", "assistant", "tool", "other", "markup", "text"].filter((role) => row[`${role}_share`]).map((role) => one(`In ${role}`, ls.percent(row[`${role}_share`]), `of its firings are on tokens of the role ${role}`)),
      one("KL when removed", ls.number(row.ablation_kl), `nats a token, on ${ls.count(row.ablation_tokens)} tokens of texts where it fires`),
      one("CE when removed", ls.number(row.ablation_ce), "rise of the cross entropy in nats a token: above 0, the feature helps"),
      one("S in", ls.number(row.s_in), "input score: share of its strongest firings on tokens that it promotes"),
      one("S out", ls.number(row.s_out), "output score: how surely steering with it brings about the tokens that it promotes"),
      one("Window coherence", ls.number(row.window_coherence), "how alike the windows around its firings are"),
      one("Document coherence", ls.number(row.document_coherence), "how alike the documents are in which it fires"),
      one("Logit kurtosis", ls.number(row.logit_kurtosis), "of its direct effect on the logits: high where it speaks of few tokens")
    );
  }

  // Contexts.

  function contexts(row, tokens) {
    const { top = [], strata = [], near_miss: near = [] } = row.contexts;
    const tabs = [];
    if (top.length) tabs.push({ name: "Strongest", note: "The windows around its strongest firings.", windows: top });
    strata.forEach(([number, windows], i) =>
      tabs.push({ name: i === 0 ? "Strong" : i === strata.length - 1 ? "Weak" : `Level ${number + 1}`, note: `A sample of its firings, level ${number + 1} of ${Math.max(...strata.map(([n]) => n + 1))} by activation (1 the weakest).`, windows })
    );
    if (near.length) tabs.push({ name: "Near misses", note: "It does not fire on the outlined token, but nearly.", windows: near, near: true });
    if (!tabs.length) return h("section.panel", {}, h("h2", {}, "Contexts"), h("p.quiet", {}, "None: it never fired."));
    return h("section.panel.contexts", {}, h("h2", {}, "Contexts"), ls.tabs("Contexts", tabs.map((tab) => ({ name: tab.name, count: tab.windows.length, make: () => windows(tab, tokens, row.max) }))), h("p.legend", { "aria-hidden": "true" }, "0 ", h("span.scale"), ` ${ls.number(row.max)}`, h("span.token.peak", {}, "peak")));
  }

  function windows({ note, windows: all, near }, tokens, max) {
    const list = h("ol.windows", {}, all.slice(0, FEWER).map((one) => ls.window(one, tokens, max, near)));
    const rest = all.slice(FEWER);
    const more =
      rest.length > 0 &&
      h("button.link", { type: "button", onclick: () => (list.append(...rest.map((one) => ls.window(one, tokens, max, near))), more.remove()) }, `${rest.length} more`);
    return [h("p.quiet", {}, note), list, more];
  }

  // Tabs: arrows move between them, as the pattern of tabs has it.
  ls.tabs = function (label, tabs, selected = 0, onSelect = () => {}) {
    const panel = h("div.tabpanel", { role: "tabpanel", "aria-label": tabs[selected].name });
    const list = h("div.tabs", { role: "tablist", "aria-label": label });
    const buttons = tabs.map((tab, i) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          onclick: () => show(i),
          onkeydown: (event) => {
            const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
            if (!step) return;
            event.preventDefault();
            show((i + step + tabs.length) % tabs.length);
            list.querySelector("[aria-selected=true]").focus();
          },
        },
        tab.name,
        tab.count !== undefined && h("span.n", {}, tab.count)
      )
    );
    list.append(...buttons);
    const show = (i) => {
      buttons.forEach((button, j) => {
        button.setAttribute("aria-selected", String(i === j));
        button.tabIndex = i === j ? 0 : -1;
      });
      panel.setAttribute("aria-label", tabs[i].name);
      ls.fill(panel, tabs[i].make());
      onSelect(i);
    };
    show(selected);
    return [list, panel];
  };

  // The side: activations, effects, tokens, relatives.

  function drawHistogram(element, population, row) {
    const { manifest } = ls.value("manifest");
    let edges = (population.name === "neurons" && manifest.neuron_histogram_edges) || manifest.histogram_edges;
    if (!element || !row.histogram || !edges) return;
    // Inner edges alone: the first bin takes what lies below them, the last what lies above.
    if (edges.length < row.histogram.length) edges = [0, ...edges];
    // Bins to the last one that holds something; the edges may be on any scale.
    const end = row.histogram.reduce((last, count, i) => (count ? i + 1 : last), 1);
    const names = row.histogram.slice(0, end).map((_, i) => `${ls.number(edges[i])} – ${edges[i + 1] === undefined ? "∞" : ls.number(edges[i + 1])}`);
    ls.plot(element, (c) => [
      [{ type: "bar", x: names.map((_, i) => i), y: row.histogram.slice(0, end), customdata: names, hovertemplate: "%{customdata}: %{y} firings<extra></extra>", marker: { color: c.hot } }],
      { height: 150, bargap: 0.06, xaxis: { tickvals: ticks(end), ticktext: ticks(end).map((i) => ls.number(edges[i], 2)), fixedrange: true }, yaxis: { type: "log", fixedrange: true, dtick: 1, exponentformat: "none", range: [Math.log10(0.6), Math.log10(Math.max(...row.histogram) * 1.15)] } },
    ]);
  }

  const ticks = (end) => [...new Set([0, 1, 2, 3].map((i) => Math.round((i * (end - 1)) / 3)))];

  function effects(row) {
    const logits = (entries) => entries && entries.map((entry) => ({ ...entry, value: entry.logit, said: ls.number(entry.logit, 2) }));
    const [up, down] = [logits(row.promoted), logits(row.suppressed)];
    if (!(up && up.length) && !(down && down.length)) return null;
    const largest = Math.max(...[...(up || []), ...(down || [])].map((entry) => Math.abs(entry.value)));
    return h("section.panel", {}, h("h2", { "data-tip": "its direct effect on the logits of the next token, the final norm's scale folded in" }, "What it writes"), h("div.pair", {}, ls.bars("promotes", up, { largest }), ls.bars("suppresses", down, { largest, negative: true })));
  }

  function around(row) {
    const shares = (entries) => entries && entries.map((entry) => ({ ...entry, value: entry.share, said: ls.percent(entry.share) }));
    const parts = [ls.bars("fires on", shares(row.tokens_on), { largest: 1 }), ls.bars("just before", shares(row.tokens_before), { largest: 1 }), ls.bars("just after", shares(row.tokens_after), { largest: 1 })].filter((part) => part);
    return parts.length ? h("section.panel", {}, h("h2", { "data-tip": "shares of its firings" }, "Where it fires"), h("div.pair", {}, parts)) : null;
  }

  function relatives(population, row) {
    const own = (name, entries, said) => {
      if (!entries || !entries.length) return null;
      const rows = entries.map((entry) => {
        const place = population.place(entry.feature);
        return h("li", {}, h("a", { href: population.href(entry.feature) }, h("span.number", {}, entry.feature), " ", place === undefined ? null : [ls.tierSign(population.code("tier", place)), " ", ls.label(population.label(place))]), h("span.figure", { "data-tip": entry.tip }, entry.said));
      });
      return h("section.panel", {}, h("h2", { "data-tip": said }, name), h("ul.relatives", {}, rows));
    };
    const cosine = (entry) => ({ feature: entry.feature, said: ls.number(entry.cosine, 2), tip: "cosine" });
    const { kind: many, width } = (ls.value("manifest").manifest.summary || {}).neurons || {};
    const kind = many === "raw neurons" ? "neuron" : "coordinate";
    const neurons = (row.neurons || []).map((entry) => {
      const words = `${kind} ${entry.feature}`;
      return h("li", {}, width ? h("a", { href: `#/neuron/${ls.signed(entry.feature, entry.cosine, width)}` }, words) : h("span", {}, words), h("span.figure", {}, ls.number(entry.cosine, 2)));
    });
    return [
      own("Nearest by direction", row.nearest && row.nearest.map(cosine), "cosine of decoder rows"),
      own("Fires together with", row.cofire.map(([feature, phi, count]) => ({ feature, said: ls.number(phi, 2), tip: `${ls.count(count)} tokens together` })), "correlation (phi) of the two firing indicators"),
      population.name === "features" && neurons.length
        ? h("section.panel", {}, h("h2", { "data-tip": kind === "neuron" ? "cosine of its decoder row with what a neuron writes" : "cosine of its decoder row with the coordinates of the site" }, `Aligned ${kind}s`), h("ul.relatives", {}, neurons), ls.value("manifest").neurons && h("p", {}, h("a", { href: `#/compare?feature=${row.feature}` }, "Before and after, side by side")))
        : null,
    ];
  }

  // All labels that were tried, with every test.
  function labels(row) {
    if (!row.labels.length) return null;
    const interval = (value, low, high) => [ls.number(value, 2), low !== null && high !== null && value !== null && h("span.quiet", {}, ` ${ls.number(low, 2)}–${ls.number(high, 2)}`)];
    const lines = row.labels.map((one) =>
      h(
        "tr",
        {},
        h("td.words", {}, h("bdi", {}, ls.visible(one.label || "")), one.rule && h("details", {}, h("summary", {}, "rule"), h("code", {}, one.rule)), one.evidence && h("details", {}, h("summary", {}, "evidence"), h("span", {}, one.evidence))),
        h("td", {}, ls.SOURCES[one.source] || one.source, one.model && h("span.quiet", {}, ` ${one.model}`), one.made && h("span.quiet", {}, ` ${one.made}`)),
        h("td", {}, one.test, one.negatives && h("span.quiet", {}, ` ${one.negatives}`)),
        h("td.figure", {}, interval(one.precision, one.precision_low, one.precision_high)),
        h("td.figure", {}, interval(one.recall, one.recall_low, one.recall_high)),
        h("td.figure", {}, ls.number(one.balanced_accuracy, 2)),
        h("td", {}, one.passed === null ? "–" : one.passed ? h("span.passed", {}, "✓ passed") : h("span.failed", {}, "✗ failed"))
      )
    );
    const heads = ["Label", "By", "Test", "Precision", "Recall", "Bal. accuracy", "Gate"].map((name) => h("th", { scope: "col" }, name));
    return h("section.panel", {}, h("h2", {}, "All labels and their tests"), h("div.wide", { tabindex: "0", role: "region", "aria-label": "All labels and their tests" }, h("table.labels", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, lines))));
  }
})(window.lightsae);
