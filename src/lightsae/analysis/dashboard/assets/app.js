// The frame: which page the address means, navigation, keys, tooltips, light and dark.
"use strict";
(function (ls) {
  const h = ls.h;
  const main = document.getElementById("main");
  const tip = document.getElementById("tip");
  const keys = document.getElementById("keys");
  ls.page = {};
  ls.server = null;
  let turn = 0;

  // Pages.

  ls.route = async function () {
    const mine = ++turn;
    const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
    const [page, id] = path.split("/");
    const params = new URLSearchParams(query || "");
    const { manifest, neurons, maps } = ls.value("manifest");
    if (ls.page.leave) ls.page.leave();
    ls.page = {};
    ls.tip(null);
    document.title = `Features of ${(manifest.sae && manifest.sae.variant) || "a dictionary"}`;
    // A page that takes long to load must not overwrite one that was asked for later.
    const room = h("div.room");
    const show = (write) => Promise.resolve(write).then(() => mine === turn);
    try {
      main.replaceChildren(room);
      drawNavigation(page);
      if (page === "feature") await show(ls.featurePage(room, await ls.population("features"), Number(id)));
      else if (page === "neuron" && neurons) await show(ls.featurePage(room, await ls.population("neurons"), Number(id)));
      else if (page === "neurons" && neurons) await show(ls.listPage(room, await ls.population("neurons"), params));
      else if (page === "map" && maps.length) await show(ls.mapPage(room, params));
      else if (page === "compare" && neurons) await show(ls.comparePage(room, params));
      else if (page === "live" && ls.server) await show(ls.livePage(room, ls.server));
      else if (page === "about") about(room, manifest);
      else ls.listPage(room, await ls.population("features"), params);
    } catch (error) {
      if (mine === turn) ls.fill(room, h("section.page", {}, h("h1", {}, "This page cannot be shown"), h("p", {}, error.message)));
    }
    if (mine === turn && !["features", "neurons", ""].includes(page)) window.scrollTo(0, 0);
    document.documentElement.dataset.page = page || "features";
  };

  function drawNavigation(page) {
    const { neurons, maps, manifest } = ls.value("manifest");
    const links = [["features", "Features", ["", "feature", "features"]]];
    const kind = ((manifest.summary || {}).neurons || {}).kind || "raw neurons";
    if (neurons) links.push(["neurons", kind[0].toUpperCase() + kind.slice(1), ["neuron", "neurons"]]);
    if (maps.length) links.push(["map", "Maps", ["map"]]);
    if (neurons) links.push(["compare", "Before / after", ["compare"]]);
    if (ls.server) links.push(["live", "Live", ["live"]]);
    links.push(["about", "About", ["about"]]);
    ls.fill(document.getElementById("nav"), links.map(([target, words, pages]) => h("a", { href: `#/${target}`, "aria-current": pages.includes(page) && "page" }, words)));
    const site = ((manifest.sae || {}).read || []).map((one) => [one.model, one.site].filter((part) => part).join(" · ")).join(", ");
    document.getElementById("where").textContent = [(manifest.sae || {}).variant, site].filter((part) => part).join(" · ");
  }

  // What the dictionary says of itself.
  function about(room, manifest) {
    const rows = [];
    const said = (value) => (typeof value === "number" ? ls.number(value) : String(value ?? "–"));
    const walk = (value, path) => {
      if (value !== null && typeof value === "object" && !(Array.isArray(value) && value.every((one) => typeof one !== "object"))) for (const [name, inner] of Object.entries(value)) walk(inner, [...path, name]);
      else rows.push(h("tr", {}, h("th", { scope: "row" }, path.join(" · ")), h("td", {}, Array.isArray(value) ? value.map(said).join(", ") : String(value ?? "–"))));
    };
    walk(manifest, []);
    ls.fill(room, h("section.page.about", {}, h("h1", {}, "About this dictionary"), h("p.lead", {}, "Where it comes from. A label that did not pass its test on held-out documents is not shown: the feature is then “unlabelled”."), h("table", {}, h("tbody", {}, rows))));
  }

  // Tooltips.

  ls.tip = function (text, at) {
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const { clientX, clientY } = at;
    const { offsetWidth: width, offsetHeight: height } = tip;
    tip.style.left = `${Math.max(8, Math.min(window.innerWidth - width - 8, clientX + 12))}px`;
    tip.style.top = `${clientY + 18 + height > window.innerHeight ? clientY - height - 10 : clientY + 18}px`;
  };
  document.addEventListener("pointerover", (event) => {
    const holder = event.target.closest && event.target.closest("[data-tip]");
    if (!event.target.closest || !event.target.closest(".js-plotly-plot")) ls.tip(holder && holder.dataset.tip, event);
  });
  document.addEventListener("focusin", (event) => {
    const { left, bottom } = event.target.getBoundingClientRect();
    if (event.target.matches(":focus-visible")) ls.tip(event.target.dataset.tip, { clientX: left, clientY: bottom - 14 });
  });
  document.addEventListener("focusout", () => ls.tip(null));

  // Keys.

  const KEYS = [
    ["/", "search"],
    ["↑ ↓ PageUp PageDown Home End", "move in the list"],
    ["Enter", "open the feature"],
    ["← →", "previous and next feature, in the list's order"],
    ["Esc", "clear the search; back to the list"],
    ["g", "then f, n, m or b: features, neurons, maps, before / after"],
    ["t", "light and dark"],
    ["?", "this help"],
  ];
  function help() {
    if (keys.open) return keys.close();
    ls.fill(
      keys,
      h("h2", {}, "Keys"),
      h("dl.keys", {}, KEYS.map(([key, words]) => [h("dt", {}, key.split(" ").map((one) => [h("kbd", {}, one), " "])), h("dd", {}, words)])),
      h("h2", {}, "Tiers"),
      h("dl.keys", {}, Object.entries(ls.TIERS).map(([name, { words }]) => [h("dt", {}, ls.tier(name)), h("dd", {}, words)])),
      h("h2", {}, "Search"),
      h("p", {}, "Labels, the most frequent tokens and the numbers of features; all words have to be found, words in quotes as a phrase. With “in contexts” also the words of all windows in which a feature fires, near misses excepted. The address keeps search, filters and order: share it."),
      h("form", { method: "dialog" }, h("button", {}, "Close"))
    );
    keys.showModal();
  }
  let going = false;
  document.addEventListener("keydown", (event) => {
    if (keys.open || event.defaultPrevented) return;
    const typing = event.target.matches("input:not([type=range]):not([type=checkbox]), textarea, select");
    const bare = !event.ctrlKey && !event.metaKey && !event.altKey;
    let done = false;
    if (!typing && bare && going) {
      going = false;
      const target = { f: "features", n: "neurons", m: "map", b: "compare" }[event.key];
      if (target) location.hash = `#/${target}`;
      done = Boolean(target);
    } else if (!typing && bare && event.key === "/") done = (toSearch(), true);
    else if (!typing && bare && event.key === "?") done = (help(), true);
    else if (!typing && bare && event.key === "t") done = (switchTheme(), true);
    else if (!typing && bare && event.key === "g") done = going = true;
    if (!done && ls.page.key && (bare || event.key === "Enter")) done = ls.page.key(event);
    if (done) event.preventDefault();
  });
  async function toSearch() {
    if (!ls.page.search) {
      location.hash = "#/features";
      await ls.route();
    }
    ls.page.search();
  }
  document.getElementById("help").addEventListener("click", help);

  // Light and dark: the system's, until somebody chooses.

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = (value) => {
    try {
      return value === undefined ? localStorage.getItem("lightsae-theme") : localStorage.setItem("lightsae-theme", value);
    } catch {
      return null; // some browsers have no storage for pages from the disk
    }
  };
  function setTheme(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
    ls.redraw();
  }
  function switchTheme() {
    const now = document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
    const next = now === "dark" ? "light" : "dark";
    stored(next);
    setTheme(next);
  }
  document.getElementById("theme").addEventListener("click", switchTheme);
  dark.addEventListener("change", () => ls.redraw());
  setTheme(new URLSearchParams(location.search).get("theme") || stored());
  window.addEventListener("hashchange", ls.route);
})(window.lightsae);
