// A typed text, encoded by the language model and the SAE behind `lightsae serve`; absent when opened from the disk.
"use strict";
(function (ls) {
  const h = ls.h;
  const SHOWN = 30;
  const own = { text: "", answer: null };

  // {live, limit} where a server with a model answers, else null.
  ls.findServer = async function () {
    if (!location.protocol.startsWith("http")) return null;
    try {
      const response = await fetch("api/status");
      const status = response.ok ? await response.json() : null;
      return status && status.live ? status : null;
    } catch {
      return null;
    }
  };

  ls.livePage = async function (main, status) {
    const features = await ls.population("features");
    const area = h("textarea", { id: "text", rows: 4, maxlength: status.max_characters, placeholder: "Type or paste a text…", "aria-label": "Text to encode", spellcheck: "false" });
    area.value = own.text;
    const said = h("span.quiet", { role: "status" });
    const result = h("div.live");
    const button = h("button.primary", { type: "button", onclick: () => encode() }, "Encode");
    ls.fill(main, h("section.page", {}, h("h1", {}, "Live"), h("p.lead", {}, `The text goes through ${status.model} and the dictionary's SAE on this machine, and nowhere else.`), area, h("p", {}, button, h("span.quiet", {}, " Ctrl+Enter "), said), result));
    ls.page = {
      key(event) {
        if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return false;
        encode();
        return true;
      },
    };
    if (own.answer) show(result, own.answer, features);
    area.focus();

    async function encode() {
      own.text = area.value;
      said.textContent = " encoding…";
      button.disabled = true;
      try {
        const response = await fetch("api/encode", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text: area.value }) });
        const answer = await response.json();
        if (!response.ok) throw new Error(answer.error);
        own.answer = answer;
        said.textContent = answer.cut ? ` only the first ${answer.tokens.length} tokens were encoded` : "";
        show(result, answer, features);
      } catch (error) {
        said.textContent = ` ${error.message}`;
      } finally {
        button.disabled = false;
      }
    }
  };

  // Chosen: {feature} shades by that feature; {token} lists what fires on that token.
  function show(result, answer, features, chosen = {}) {
    const strongest = new Map();
    for (const token of answer.tokens) if (token.counted) for (const [feature, value] of token.features) strongest.set(feature, Math.max(value, strongest.get(feature) || 0));
    const feature = chosen.feature ?? null;
    const share = (token) => {
      if (!token.counted) return 0;
      if (feature === null) return token.features.length ? token.features[0][1] / scale(features, token.features[0][0], strongest) : 0;
      const entry = token.features.find(([one]) => one === feature);
      return entry ? entry[1] / scale(features, feature, strongest) : 0;
    };
    const spans = answer.tokens.map((token, i) => {
      const element = ls.token(token.text, share(token), `“${ls.visibleText(token.text, true)}”  token ${token.id}, ${token.features.length} features${token.counted ? "" : "\nnot counted: a special token or an attention sink"}`, i === chosen.token);
      element.setAttribute("role", "button");
      element.tabIndex = 0;
      const choose = () => show(result, answer, features, i === chosen.token ? {} : { token: i });
      element.addEventListener("click", choose);
      element.addEventListener("keydown", (event) => event.key === "Enter" && !event.ctrlKey && choose());
      return element;
    });
    const entries = chosen.token === undefined ? [...strongest].map(([one, value]) => [one, value]) : answer.tokens[chosen.token].features;
    const ranked = [...entries].sort((a, b) => b[1] / scale(features, b[0], strongest) - a[1] / scale(features, a[0], strongest)).slice(0, SHOWN);
    const rows = ranked.map(([one, value]) => {
      const place = features.place(one);
      const bar = h("span.fill");
      bar.style.width = `${Math.min(100, (100 * value) / scale(features, one, strongest)).toFixed(1)}%`;
      return h(
        "tr",
        { "aria-selected": String(one === feature) },
        h("td", {}, h("button.link", { type: "button", "data-tip": "shade the text by it", onclick: () => show(result, answer, features, one === feature ? {} : { feature: one }) }, one === feature ? "◉" : "○")),
        h("td.number", {}, h("a", { href: features.href(one) }, one)),
        h("td", {}, place !== undefined && ls.tierSign(features.code("tier", place))),
        h("td.words", {}, place === undefined ? null : ls.label(features.label(place))),
        h("td.track", { "aria-hidden": "true" }, bar),
        h("td.figure", { "data-tip": "activation, in normalised units" }, ls.number(value))
      );
    });
    const heading = chosen.token === undefined ? "Strongest in the text" : ["On ", h("bdi.chip", {}, ls.visible(answer.tokens[chosen.token].text, true))];
    ls.fill(
      result,
      h("section.panel", {}, h("p.livetext", {}, spans), h("p.quiet", {}, feature === null ? "Shaded by the strongest feature of each token, as a share of that feature's maximum. Choose a token, or a feature below." : `Shaded by feature ${feature}.`)),
      h("section.panel", {}, h("h2", {}, heading), rows.length ? h("table.firing", {}, h("tbody", {}, rows)) : h("p.quiet", {}, "No feature fires."))
    );
  }

  // A feature's maximum over the dictionary's text, or in this text where it is stronger.
  function scale(features, feature, strongest) {
    const place = features.place(feature);
    return Math.max((place === undefined ? 0 : features.value("max", place)) || 0, strongest.get(feature) || 0) || 1;
  }
})(window.lightsae);
