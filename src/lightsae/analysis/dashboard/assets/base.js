// Elements, numbers and texts as they are shown. Texts of the corpus only ever become text nodes, never markup.
"use strict";
window.lightsae = {};
(function (ls) {
  // h("p.quiet", {title: "..."}, "text", child, [more]): an element. Strings and numbers become text.
  ls.h = function (what, attributes, ...children) {
    const [tag, ...classes] = what.split(".");
    const element = document.createElement(tag);
    if (classes.length) element.className = classes.join(" ");
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    add(element, children);
    return element;
  };

  function add(element, children) {
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      element.append(child instanceof Node ? child : String(child));
    }
  }

  ls.fill = function (element, ...children) {
    element.replaceChildren();
    add(element, children);
    return element;
  };

  ls.number = function (value, digits = 3) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-3) return value.toExponential(Math.max(0, digits - 2)).replace("e+", "e").replace("-", "−");
    const text = size >= 100 ? value.toFixed(0) : value.toPrecision(digits).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
    return text.replace("-", "−");
  };
  ls.count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
  ls.percent = function (value) {
    if (value === null || value === undefined) return "–";
    const percent = 100 * value;
    return percent === 0 ? "0%" : percent < 0.001 ? "<0.001%" : `${Number(percent.toPrecision(percent >= 10 ? 3 : 2))}%`;
  };

  // Line ends, tabs and what cannot be seen get a sign; characters that turn the line around are named.
  const SIGNS = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };
  const UNSEEN = /([\n\r\t\u00a0]|[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb])/;
  ls.visible = function (text, spaces = false) {
    const parts = text.split(UNSEEN).filter((part) => part !== "");
    if (!parts.length) return [ls.h("span.sign", {}, "∅")];
    return parts.flatMap((part) => {
      if (UNSEEN.test(part)) {
        const sign = SIGNS[part] || `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
        return [ls.h("span.sign", {}, sign)];
      }
      if (!spaces) return [part];
      return part.split(/( )/).filter((piece) => piece !== "").map((piece) => (piece === " " ? ls.h("span.sign", {}, "␣") : piece));
    });
  };
  // The same as one string, for tooltips and titles.
  ls.visibleText = (text, spaces = false) => ls.visible(text, spaces).map((part) => (typeof part === "string" ? part : part.textContent)).join("");

  ls.TIERS = {
    high: { sign: "●", words: "label with high confidence" },
    medium: { sign: "◐", words: "label with medium confidence" },
    withheld: { sign: "◇", words: "label passed, but no more of them do than of floors here" },
    unlabelled: { sign: "○", words: "no label passed its test" },
    rare: { sign: "◌", words: "fires too seldom to be tested" },
    dead: { sign: "×", words: "never fired" },
  };
  ls.SOURCES = { rule: "rule", detector: "detector", llm: "language model", human: "human", neuronpedia: "Neuronpedia" };
  ls.tier = (name) =>
    name && ls.h(`span.tier.tier-${name}`, { "data-tip": (ls.TIERS[name] || {}).words }, (ls.TIERS[name] || {}).sign || "?", " ", name);
  ls.tierSign = (name) =>
    ls.h(`span.tier.tier-${name}`, { "data-tip": name && `${name}: ${(ls.TIERS[name] || {}).words}`, role: "img", "aria-label": name || "none" }, (ls.TIERS[name] || {}).sign || "?");
  ls.label = (text) => (text === null || text === undefined ? ls.h("span.unlabelled", {}, "unlabelled") : ls.h("bdi.label", {}, ls.visible(text)));
})(window.lightsae);
