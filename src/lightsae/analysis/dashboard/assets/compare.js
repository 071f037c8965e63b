// Before and after: all raw neurons beside all features, and any feature beside the neuron that it aligns with most.
"use strict";
(function (ls) {
  const h = ls.h;
  const BINS = 40;
  const LEAST = 10; // no median of fewer
  const SCORES = [
    ["window_coherence", "Window coherence", "how alike the windows around the firings are"],
    ["document_coherence", "Document coherence", "how alike the documents are in which it fires"],
    ["frequency", "Density", "share of the tokens on which it fires; logarithmic"],
    ["lower", "Lower of precision and recall", "of every tested feature, whether its label passed or not"],
  ];

  ls.comparePage = async function (main, params) {
    const [features, neurons] = await Promise.all([ls.population("features"), ls.population("neurons")]);
    const scores = SCORES.filter(([key]) => features.columns[key] && neurons.columns[key]);
    const pair = h("div.sides");
    const asked = Number(params.get("feature") ?? NaN);
    const first = features.place(asked) === undefined ? start(features) : asked;
    const input = h("input", { type: "number", id: "pair", min: 0, value: first, "aria-label": "Feature", onchange: () => choose(Number(input.value)) });
    const another = h("button", { type: "button", onclick: () => choose(draw(features)) }, "another one");
    ls.fill(
      main,
      h(
        "section.page.compare",
        {},
        h("h1", {}, "Before and after"),
        h("p.lead", {}, `Before: ${ls.count(neurons.n)} ${neurons.many}, each where it is high (+) and where it is low (−), as often as the features fire. After: the ${ls.count(features.n)} features of the dictionary. Both went through the same pipeline on the same text; all of them are in the distributions, none was picked.`),
        shares(neurons, features),
        h("div.distributions", {}, scores.map(([key, name, words]) => distribution(key, name, words, neurons, features))),
        h("h2", {}, "Side by side"),
        h("p", {}, h("label", {}, "feature ", input), " ", another, h("span.quiet", {}, `  beside the ${neurons.title} that its direction aligns with most`)),
        pair
      )
    );
    for (const figure of main.querySelectorAll(".distribution")) figure.start();
    ls.page = {};
    choose(first);

    async function choose(number) {
      const place = features.place(number);
      if (place === undefined) {
        ls.fill(pair, h("p.quiet", {}, `There is no feature ${number}.`));
        return;
      }
      input.value = number;
      history.replaceState(null, "", `#/compare?feature=${number}`);
      const nearest = (features.columns.neuron || [])[place];
      const [after, before] = await Promise.all([features.load(number), nearest ? neurons.load(neurons.width ? ls.signed(...nearest, neurons.width) : nearest[0]) : null]);
      ls.fill(
        pair,
        before ? side(neurons, before, "Before", `cosine ${ls.number(nearest[1], 2)} with the feature's direction`) : h("section.panel", {}, h("h2", {}, "Before"), h("p.quiet", {}, `No ${neurons.title} is known for it.`)),
        side(features, after, "After", null)
      );
    }
  };

  // The first one that has something to show on both sides.
  function start(features) {
    const place = ls.select(features, ls.noFilter(), null).find((one) => !features.columns.neuron || features.columns.neuron[one]);
    return features.number(place ?? 0);
  }

  function draw(features) {
    const alive = ls.select(features, { ...ls.noFilter(), alive: true }, null);
    return features.number(alive[Math.floor(Math.random() * alive.length)] ?? 0);
  }

  function side(population, { row, tokens }, when, note) {
    const windows = (row.contexts.top || []).slice(0, 8).map((one) => ls.window(one, tokens, row.max, false));
    return h(
      `section.panel.side-${when.toLowerCase()}`,
      {},
      h("p.kicker", {}, when, ": ", h("a", { href: population.href(row.feature) }, `${population.title} ${population.called(row.feature)}`), " ", ls.tier(row.tier)),
      h("h3", {}, ls.label(row.label)),
      h("p.quiet", {}, `density ${ls.percent(row.frequency)}, window coherence ${ls.number(row.window_coherence, 2)}`, row.label !== null && `, precision ${ls.number(row.precision, 2)}, recall ${ls.number(row.recall, 2)}`, note && `, ${note}`),
      windows.length ? h("ol.windows", {}, windows) : h("p.quiet", {}, "It never fired.")
    );
  }

  function shares(neurons, features) {
    const count = (population) => {
      const tiers = new Map();
      for (let place = 0; place < population.n; place++) tiers.set(population.code("tier", place), (tiers.get(population.code("tier", place)) || 0) + 1);
      const tested = population.n - (tiers.get("dead") || 0) - (tiers.get("rare") || 0);
      const labelled = ["high", "medium", "withheld"].reduce((sum, tier) => sum + (tiers.get(tier) || 0), 0);
      return { tiers, share: tested ? labelled / tested : null, tested };
    };
    const both = [[`Before: ${neurons.many}`, count(neurons)], ["After: features", count(features)]];
    const chance = (ls.value("manifest").manifest.summary || {}).above_chance === false;
    const share = (name, one) => (chance && name.startsWith("After") ? "not above chance here" : `${ls.percent(one.share)} (n = ${ls.count(one.tested)})`);
    const kinds = ls.TIER_ORDER.filter((tier) => both.some(([, one]) => one.tiers.get(tier)));
    return h(
      "table.shares",
      {},
      h("thead", {}, h("tr", {}, h("th", {}, h("span.unseen", {}, "Population")), h("th", { scope: "col" }, "labelled, of the tested"), kinds.map((tier) => h("th", { scope: "col" }, ls.tier(tier))))),
      h("tbody", {}, both.map(([name, one]) => h("tr", {}, h("th", { scope: "row" }, name), h("td.big", {}, share(name, one)), kinds.map((tier) => h("td.figure", {}, ls.count(one.tiers.get(tier) || 0))))))
    );
  }

  // A histogram, or what share lies at or below each value.
  function distribution(key, name, words, neurons, features) {
    const log = key === "frequency";
    const values = (population) => population.columns[key].filter((value) => value !== null && (!log || value > 0)).map((value) => (log ? Math.log10(value) : value));
    const both = [[neurons.many, values(neurons), "before"], ["features", values(features), "accent"]];
    const medians = both.map(([what, some]) => `${what} ${some.length >= LEAST ? ls.number(shown(median(some), log), 2) : "–"} (n = ${ls.count(some.length)})`);
    const figure = h("div.distribution", { role: "img", "aria-label": `${name}: median of ${medians.join(", of ")}` });
    let cumulative = false;
    const axis = log ? { tickvals: [-6, -5, -4, -3, -2, -1, 0], ticktext: ["1e-6", "1e-5", "1e-4", "0.1%", "1%", "10%", "100%"] } : {};
    const all = both.flatMap(([, some]) => some);
    let [low, high] = all.length ? [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))] : [0, 1];
    if (high - low < 1e-6) [low, high] = [low - 0.5, high + 0.5];
    const size = ((high - low) / BINS) * 1.0001; // the largest value lies inside the last bin
    const make = (c) => {
      const traces = both.map(([what, some, colour]) => {
        if (cumulative) {
          const sorted = Float64Array.from(some).sort();
          return { type: "scatter", mode: "lines", name: what, x: sorted, y: Float64Array.from(sorted, (_, i) => (i + 1) / sorted.length), line: { color: c[colour], width: 2, shape: "hv" } };
        }
        return { type: "histogram", name: what, x: some, histnorm: "probability", opacity: 0.6, marker: { color: c[colour] }, xbins: { start: low, end: low + BINS * size, size } };
      });
      return [traces, { height: 240, barmode: "overlay", xaxis: { ...axis, fixedrange: true, range: [low, low + BINS * size] }, yaxis: { fixedrange: true, tickformat: ".0%" } }];
    };
    figure.start = () => ls.plot(figure, make);
    const button = h("button.link", { type: "button", "aria-pressed": "false", onclick: () => ((cumulative = !cumulative), button.setAttribute("aria-pressed", String(cumulative)), ls.fill(button, cumulative ? "histogram" : "cumulative"), ls.redraw()) }, "cumulative");
    return h("figure.panel", {}, h("figcaption", {}, h("strong", { "data-tip": words }, name), h("span.quiet", {}, ` median: ${medians.join(", ")}`), button), figure);
  }

  const shown = (value, log) => (log ? 10 ** value : value);
  function median(some) {
    const sorted = Float64Array.from(some).sort();
    const half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }
})(window.lightsae);
