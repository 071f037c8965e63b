// Which features a list shows, and in which order; and how that is written in the address.
"use strict";
(function (ls) {
  ls.TIER_ORDER = ["high", "medium", "withheld", "unlabelled", "rare", "dead"];
  // Columns of numbers: name, heading, what it is, how it is shown.
  ls.COLUMNS = [
    { key: "frequency", head: "Density", tip: "share of the counted tokens on which it fires", show: ls.percent },
    { key: "precision", head: "Precision", tip: "of the tokens that the label predicts, the share on which it fires (held-out documents)", show: (v) => ls.number(v, 2) },
    { key: "recall", head: "Recall", tip: "of the tokens on which it fires, the share that the label predicts (held-out documents)", show: (v) => ls.number(v, 2) },
    { key: "max", head: "Max", tip: "largest activation, in normalised units", show: (v) => ls.number(v, 3) },
    { key: "window_coherence", head: "Coherence", tip: "how alike the windows around its firings are", show: (v) => ls.number(v, 2) },
    { key: "ablation_kl", head: "KL", tip: "what changes when it is removed: KL divergence of the next token, nats a token", show: (v) => ls.number(v, 2) },
    { key: "s_out", head: "S out", tip: "output score: how surely steering with it brings about the tokens that it promotes", show: (v) => ls.number(v, 2) },
    { key: "s_in", head: "S in", tip: "input score: share of its strongest firings on the tokens that it promotes", show: (v) => ls.number(v, 2) },
    { key: "ablation_ce", head: "CE", tip: "rise of the cross entropy when it is removed, nats a token", show: (v) => ls.number(v, 2) },
    { key: "mean", head: "Mean", tip: "mean activation where it fires, in normalised units", show: (v) => ls.number(v, 3) },
    { key: "fires", head: "Fires", tip: "tokens on which it fires", show: ls.count },
    { key: "document_coherence", head: "Doc. coherence", tip: "how alike the documents are in which it fires", show: (v) => ls.number(v, 2) },
    { key: "document_spread", head: "Spread", tip: "documents reached, of those that as many random firings would reach", show: (v) => ls.number(v, 2) },
    ...["assistant", "user", "system", "developer", "tool", "other", "markup", "text"].map((role) => ({ key: `${role}_share`, head: `In ${role}`, tip: `share of its firings on tokens of the role ${role}`, show: ls.percent })),
    { key: "logit_kurtosis", head: "Kurtosis", tip: "of its direct effect on the logits: high where it speaks of few tokens", show: (v) => ls.number(v, 3) },
  ];

  ls.noFilter = () => ({ q: "", contexts: false, sort: "quality", down: true, tiers: new Set(), sources: new Set(), min: null, max: null, alive: false });

  ls.readFilter = function (params) {
    const filter = ls.noFilter();
    filter.q = params.get("q") || "";
    filter.contexts = params.get("in") === "contexts";
    const sort = params.get("sort");
    if (sort) [filter.down, filter.sort] = [sort.startsWith("-"), sort.replace(/^-/, "")];
    for (const [key, name] of [["tiers", "tier"], ["sources", "source"]]) if (params.get(name)) filter[key] = new Set(params.get(name).split("."));
    const [min, max] = (params.get("density") || "").split("~");
    if (min && Number.isFinite(Number(min))) filter.min = Number(min);
    if (max && Number.isFinite(Number(max))) filter.max = Number(max);
    filter.alive = params.get("alive") === "1";
    return filter;
  };

  ls.writeFilter = function (filter) {
    const params = new URLSearchParams();
    if (filter.q) params.set("q", filter.q);
    if (filter.contexts) params.set("in", "contexts");
    if (filter.sort !== "quality" || !filter.down) params.set("sort", (filter.down ? "-" : "") + filter.sort);
    if (filter.tiers.size) params.set("tier", [...filter.tiers].join("."));
    if (filter.sources.size) params.set("source", [...filter.sources].join("."));
    if (filter.min !== null || filter.max !== null) params.set("density", `${filter.min ?? ""}~${filter.max ?? ""}`);
    if (filter.alive) params.set("alive", "1");
    const text = params.toString();
    return text ? `?${text}` : "";
  };

  // Words, or phrases in quotes; all of them have to be found.
  ls.terms = (query) => (query.toLowerCase().match(/"[^"]+"|\S+/g) || []).map((term) => term.replace(/^"(.+)"$/, "$1"));

  function haystack(population) {
    if (!population.haystack) {
      const found = new Array(population.n);
      for (let place = 0; place < population.n; place++) found[place] = `${population.label(place) || ""}\n${population.tokens(place).join("\n")}`.toLowerCase();
      population.haystack = found;
    }
    return population.haystack;
  }

  // Features in whose contexts some word holds the term.
  function inContexts(words, term, n) {
    const found = new Uint8Array(n);
    const parts = term.split(/[^\p{L}\p{M}\p{N}_]+/u).filter((part) => part);
    parts.forEach((part, round) => {
      for (let i = 0; i < words.words.length; i++) {
        if (!words.words[i].includes(part)) continue;
        let place = 0;
        for (const step of words.rows[i].split(" ")) {
          place += parseInt(step, 36);
          if (found[place] === round) found[place] = round + 1;
        }
      }
    });
    return found.map((rounds) => (parts.length && rounds === parts.length ? 1 : 0));
  }

  // The places of what the filter keeps, in its order. `words`: the index of contexts, where it is to be searched.
  ls.select = function (population, filter, words) {
    const { columns, n } = population;
    const terms = ls.terms(filter.q);
    const hay = terms.length ? haystack(population) : null;
    const masks = words ? terms.map((term) => inContexts(words, term, n)) : null;
    const kept = [];
    for (let place = 0; place < n; place++) {
      const frequency = columns.frequency ? columns.frequency[place] : null;
      if (filter.alive && !frequency) continue;
      if (filter.min !== null && !(frequency >= filter.min)) continue;
      if (filter.max !== null && !(frequency <= filter.max)) continue;
      if (filter.tiers.size && !filter.tiers.has(population.code("tier", place))) continue;
      if (filter.sources.size && !filter.sources.has(population.code("label_source", place))) continue;
      if (hay && !terms.every((term, i) => hay[place].includes(term) || term.replace(/^#/, "") === String(population.number(place)) || (masks && masks[i][place]))) continue;
      kept.push(place);
    }
    return order(population, kept, filter);
  };

  function order(population, kept, { sort, down }) {
    const sign = down ? -1 : 1;
    if (sort === "number") return down ? kept.reverse() : kept;
    if (sort === "label" || sort === "tokens") {
      const text = sort === "label" ? (place) => population.label(place) : (place) => population.tokens(place)[0] ?? null;
      const collator = new Intl.Collator("en", { numeric: true });
      return kept.sort((a, b) => last(text(a), text(b)) ?? (-sign * collator.compare(text(a), text(b)) || a - b));
    }
    const keys = sort === "quality" ? quality(population) : population.columns[sort] || [];
    return kept.sort((a, b) => last(keys[a], keys[b]) ?? (sign * (keys[a] - keys[b]) || a - b));
  }

  // What is not known comes last in either direction.
  function last(a, b) {
    const [noA, noB] = [a === null || a === undefined, b === null || b === undefined];
    return noA || noB ? noA - noB : null;
  }

  // Tier first, then the lower one of precision and recall, then how often it fires.
  function quality(population) {
    if (!population.quality) {
      const { columns, n } = population;
      population.quality = Float64Array.from({ length: n }, (_, place) => {
        const tier = ls.TIER_ORDER.indexOf(population.code("tier", place));
        const tested = Math.min(population.value("precision", place) ?? 0, population.value("recall", place) ?? 0);
        return -10 * (tier < 0 ? 9 : tier) + 5 * tested + (columns.frequency ? Math.min(1, columns.frequency[place] || 0) : 0);
      });
    }
    return population.quality;
  }
})(window.lightsae);
