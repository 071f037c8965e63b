// Tokens and windows: shading by activation, the peak by its position, signs for what cannot be seen.
"use strict";
(function (ls) {
  const h = ls.h;

  // One token. `share`: of the strongest activation, 0 to 1.
  ls.token = function (text, share, tip, peak) {
    const element = h(peak ? "span.token.peak" : "span.token", { "data-tip": tip }, ls.visible(text));
    if (share > 0) element.style.setProperty("--share", Math.min(1, share).toFixed(3));
    return element;
  };

  // A window of a chunk: see chunks.py for its layout. `max`: the feature's largest activation.
  ls.window = function (window, tokens, max, near) {
    const [score, documentNumber, row, position, peak, ids, strengths] = window;
    const values = new Map();
    for (let i = 0; i < strengths.length; i += 2) values.set(strengths[i], strengths[i + 1]);
    const spans = ids.map((index, place) => {
      const [id, text] = tokens[index];
      const value = values.get(place) || 0;
      const share = max ? value / max : 0;
      const said = value ? `activation ${ls.number(value)}, ${ls.percent(share)} of the maximum` : near && place === peak ? "does not fire; nearest to it here" : "does not fire";
      return ls.token(text, share, `“${ls.visibleText(text, true)}”  token ${id}\n${said}`, place === peak);
    });
    return h(
      "li.window",
      {},
      h("span.score", { "data-tip": near ? "pre-activation where it came nearest to firing" : "activation of the outlined token" }, ls.number(score)),
      h("span.text", { dir: "ltr" }, spans),
      h("span.origin", { "data-tip": `document ${ls.count(documentNumber)}, row ${ls.count(row)}, position ${position}` }, `doc ${documentNumber}`)
    );
  };

  // A table of tokens with a bar for each: [{text, token, value, said}].
  ls.bars = function (caption, entries, { negative = false, largest = null, note = null } = {}) {
    if (!entries || !entries.length) return null;
    const most = largest || Math.max(...entries.map((entry) => Math.abs(entry.value)), 1e-12);
    const rows = entries.map((entry) => {
      const bar = h(negative ? "span.fill.negative" : "span.fill");
      bar.style.width = `${((100 * Math.abs(entry.value)) / most).toFixed(1)}%`;
      return h(
        "tr",
        {},
        h("th", { scope: "row", "data-tip": `token ${entry.token}` }, h("bdi.chip", {}, ls.visible(entry.text || "", true))),
        h("td.track", { "aria-hidden": "true" }, bar),
        h("td.figure", {}, entry.said)
      );
    });
    return h("table.bars", {}, h("caption", {}, caption, note && h("span.note", {}, ` ${note}`)), h("tbody", {}, rows));
  };
})(window.lightsae);
