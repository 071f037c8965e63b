// The list of all features: search, filters, sorting; only the rows in sight are in the document.
"use strict";
(function (ls) {
  const h = ls.h;
  const ROW = 40;
  const SPARE = 8;
  // Decades of the density sliders.
  const LOWEST = -6;
  const state = {}; // by population: {filter, rows, active}

  ls.listState = (name) => (state[name] = state[name] || { filter: ls.noFilter(), rows: null, active: 0, top: 0 });

  ls.listPage = function (main, population, params) {
    const own = ls.listState(population.name);
    own.filter = ls.readFilter(params);
    const view = build(main, population, own);
    ls.page = {
      key: (event) => onKey(event, view),
      search: () => view.search.focus(),
      leave: () => view.leave(),
    };
    update(view, true);
  };

  // What is said first: the share labelled, or that it is not above chance.
  function headline() {
    const { headline, manifest } = ls.value("manifest");
    const chance = (manifest.summary || {}).above_chance === false;
    const curve = Object.entries((manifest.summary || {}).labelled_by_patterns || {}).map(([most, share]) => `${most}: ${ls.percent(share)}`);
    const words = curve.length ? h("span.quiet", { "data-tip": "Share labelled if a rule may have so many patterns. A label says all of its rule: at most three patterns, of which a list of up to five tokens counts as one." }, ` By the most patterns of a rule, ${curve.join(", ")}.`) : null;
    return headline ? h(chance ? "p.headline.chance" : "p.headline", {}, headline, words) : null;
  }

  function build(main, population, own) {
    const view = { population, own, columns: [] };
    view.search = h("input", {
      type: "search",
      id: "search",
      placeholder: `Search ${ls.count(population.n)} ${population.many}: labels, tokens, numbers`,
      "aria-label": "Search labels, tokens and numbers",
      autocomplete: "off",
      spellcheck: "false",
      value: own.filter.q,
      oninput: () => change(view, { q: view.search.value }),
    });
    view.contexts = h("input", { type: "checkbox", checked: own.filter.contexts, onchange: () => change(view, { contexts: view.contexts.checked }) });
    view.count = h("span.count", { role: "status", "aria-live": "polite" });
    view.filters = h("div.filters");
    view.head = h("div.head", { role: "row" });
    view.canvas = h("div.canvas", { role: "rowgroup" });
    view.scroller = h("div.scroller", { tabindex: "0", role: "grid", "aria-label": population.many }, h("div.headgroup", { role: "rowgroup" }, view.head), view.canvas);
    ls.fill(
      main,
      h("section.list", {}, population.name === "features" && headline(), h("div.find", {}, h("span.searchbox", {}, view.search, h("kbd", { "aria-hidden": "true" }, "/")), h("label.check", { "data-tip": "also the words of all windows in which it fires; loads their index" }, view.contexts, " in contexts"), view.count), view.filters, view.scroller)
    );
    view.scroller.addEventListener("scroll", () => requestAnimationFrame(() => draw(view)), { passive: true });
    view.scroller.addEventListener("click", (event) => {
      const row = event.target.closest("[data-place]");
      if (row && !event.target.closest("a") && !String(getSelection())) open(view, Number(row.dataset.place));
    });
    const resized = () => {
      layOut(view);
      draw(view);
    };
    window.addEventListener("resize", resized);
    view.leave = () => {
      window.removeEventListener("resize", resized);
      own.top = view.scroller.scrollTop;
    };
    return view;
  }

  function change(view, changes) {
    Object.assign(view.own.filter, changes);
    history.replaceState(null, "", `#/${view.population.name}${ls.writeFilter(view.own.filter)}`);
    update(view, false);
  }

  function update(view, arriving) {
    const { own, population } = view;
    const words = own.filter.contexts && own.filter.q ? ls.value(`${population.name}-words`) : null;
    if (own.filter.contexts && own.filter.q && !words) {
      view.count.textContent = "loading the words of contexts…";
      ls.load(`${population.name}-words`).then(
        () => view.scroller.isConnected && update(view, arriving),
        (error) => (view.count.textContent = error.message)
      );
      return;
    }
    const before = arriving && own.rows ? own.rows[own.active] : null;
    own.rows = ls.select(population, own.filter, words);
    own.active = Math.max(0, before === null ? 0 : own.rows.indexOf(before));
    view.count.textContent = own.rows.length === population.n ? `${ls.count(population.n)}` : `${ls.count(own.rows.length)} of ${ls.count(population.n)}`;
    view.scroller.setAttribute("aria-rowcount", own.rows.length + 1);
    drawFilters(view);
    layOut(view);
    view.scroller.scrollTop = arriving ? own.top : 0;
    draw(view);
  }

  // Filters.

  function drawFilters(view) {
    const { population, own } = view;
    const { filter } = own;
    const counts = tally(population);
    const toggles = (name, set, entries) =>
      entries
        .filter(([value]) => counts[name].get(value))
        .map(([value, ...words]) =>
          h("button.toggle", { type: "button", id: `only-${value}`, "aria-pressed": String(set.has(value)), onclick: () => toggle(view, set, value) }, words, h("span.n", {}, ls.count(counts[name].get(value))))
        );
    const tiers = toggles("tier", filter.tiers, ls.TIER_ORDER.map((tier) => [tier, ls.tier(tier)]));
    const sources = toggles("label_source", filter.sources, Object.entries(ls.SOURCES));
    const alive = h("button.toggle", { type: "button", id: "only-alive", "aria-pressed": String(filter.alive), onclick: () => change(view, { alive: !filter.alive }) }, "alive");
    const focused = document.activeElement && document.activeElement.id;
    ls.fill(
      view.filters,
      h("div.group", { role: "group", "aria-label": "Tier" }, tiers, alive),
      sources.length > 1 && h("div.group", { role: "group", "aria-label": "Source of the label" }, h("span.quiet", {}, "label by"), sources),
      population.columns.frequency && density(view),
      sorter(view),
      ls.writeFilter(filter) && h("button.link", { type: "button", onclick: () => reset(view) }, "reset")
    );
    if (focused && view.filters.querySelector(`[id="${focused}"]`)) document.getElementById(focused).focus();
  }

  function tally(population) {
    if (!population.tally) {
      population.tally = {};
      for (const name of ["tier", "label_source"]) {
        const counts = (population.tally[name] = new Map());
        for (let place = 0; place < population.n; place++) {
          const value = population.code(name, place);
          counts.set(value, (counts.get(value) || 0) + 1);
        }
      }
    }
    return population.tally;
  }

  function toggle(view, set, value) {
    if (!set.delete(value)) set.add(value);
    change(view, {});
  }

  function reset(view) {
    view.search.value = "";
    view.contexts.checked = false;
    change(view, ls.noFilter());
  }

  function density(view) {
    const { filter } = view.own;
    const said = h("output.quiet", {});
    const say = () => (said.textContent = filter.min === null && filter.max === null ? "any" : `${filter.min === null ? "0" : ls.percent(filter.min)} – ${filter.max === null ? "100%" : ls.percent(filter.max)}`);
    const slider = (key, end, words) =>
      h("input", {
        type: "range",
        id: `density-${key}`,
        min: LOWEST,
        max: 0,
        step: 0.25,
        value: filter[key] === null ? end : Math.log10(filter[key]),
        "aria-label": words,
        oninput: (event) => {
          const decade = Number(event.target.value);
          change(view, { [key]: decade === end ? null : Number((10 ** decade).toPrecision(3)) });
        },
      });
    say();
    return h("div.group.density", { role: "group", "aria-label": "Density" }, h("span.quiet", {}, "density"), slider("min", LOWEST, "Lowest density"), slider("max", 0, "Highest density"), said);
  }

  function sorter(view) {
    const { population, own } = view;
    const choices = [["quality", "label quality"], ["number", "number"], ["label", "label"], ["tokens", "tokens"], ...known(population).map((column) => [column.key, column.head.toLowerCase()])];
    const select = h("select", { id: "sort", "aria-label": "Sort by", onchange: () => change(view, { sort: select.value, down: !["number", "label", "tokens"].includes(select.value) }) });
    for (const [key, words] of choices) select.append(h("option", { value: key, selected: own.filter.sort === key }, words));
    const turn = h("button.icon", { type: "button", id: "turn", "aria-label": own.filter.down ? "Largest first; turn round" : "Smallest first; turn round", onclick: () => change(view, { down: !own.filter.down }) }, own.filter.down ? "↓" : "↑");
    return h("div.group", {}, h("span.quiet", {}, "sort"), select, turn);
  }

  // Columns and rows.

  const known = (population) => ls.COLUMNS.filter((column) => population.columns[column.key]);

  function layOut(view) {
    const { population, own } = view;
    const width = view.scroller.clientWidth || 1000;
    const numbers = known(population);
    const room = Math.max(1, Math.min(7, Math.floor((width - 520) / 92)));
    const shown = numbers.slice(0, room);
    const sorted = numbers.find((column) => column.key === own.filter.sort);
    if (sorted && !shown.includes(sorted)) shown[shown.length - 1] = sorted;
    const fixed = [
      { key: "number", head: "#", width: "64px" },
      { key: "quality", head: "", tip: "tier, then the lower one of precision and recall", width: "28px" },
      { key: "label", head: "Label", width: "minmax(150px, 2.2fr)" },
    ];
    if (width > 640) fixed.push({ key: "tokens", head: "Fires on", tip: "its most frequent tokens", width: "minmax(120px, 1fr)" });
    view.columns = [...fixed, ...shown.map((column) => ({ ...column, width: column.key === "frequency" ? "104px" : "84px" }))];
    view.scroller.style.setProperty("--columns", view.columns.map((column) => column.width).join(" "));
    view.scroller.setAttribute("aria-colcount", view.columns.length);
    ls.fill(
      view.head,
      view.columns.map((column) => {
        const here = own.filter.sort === column.key;
        const sort = () => change(view, here ? { down: !own.filter.down } : { sort: column.key, down: !["number", "label", "tokens"].includes(column.key) });
        const mark = here ? (own.filter.down ? " ↓" : " ↑") : "";
        return h("div", { role: "columnheader", class: `cell ${column.show ? "figure" : ""}`, "aria-sort": here ? (own.filter.down ? "descending" : "ascending") : "none" }, h("button", { type: "button", tabindex: "-1", "data-tip": column.tip, "aria-label": column.head || "Tier", onclick: sort }, column.head || "◑", mark));
      })
    );
  }

  function draw(view) {
    if (!view.scroller.isConnected) return;
    const { own, scroller, canvas } = view;
    canvas.style.height = `${own.rows.length * ROW}px`;
    const first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - SPARE);
    const end = Math.min(own.rows.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / ROW) + SPARE);
    const rows = [];
    for (let i = first; i < end; i++) rows.push(row(view, i));
    if (!own.rows.length) rows.push(h("p.empty", { role: "row" }, h("span", { role: "gridcell" }, "Nothing matches. ", h("button.link", { type: "button", onclick: () => reset(view) }, "Reset search and filters"))));
    ls.fill(canvas, rows);
    if (own.rows.length) scroller.setAttribute("aria-activedescendant", `row-${own.rows[own.active]}`);
    else scroller.removeAttribute("aria-activedescendant");
  }

  function row(view, i) {
    const { population, own } = view;
    const place = own.rows[i];
    const number = population.number(place);
    const cells = view.columns.map((column) => {
      if (column.key === "number") return h("span.cell.number", { role: "gridcell" }, h("a", { href: population.href(number), tabindex: "-1" }, population.called(number)));
      if (column.key === "quality") return h("span.cell", { role: "gridcell" }, ls.tierSign(population.code("tier", place)));
      if (column.key === "label") return h("span.cell.words", { role: "gridcell" }, ls.label(population.label(place)));
      if (column.key === "tokens") return h("span.cell.words", { role: "gridcell" }, population.tokens(place).map((text) => h("bdi.chip", {}, ls.visible(text, true))));
      const value = population.value(column.key, place);
      const cell = h("span.cell.figure", { role: "gridcell" }, column.show(value));
      if (column.key === "frequency" && value) {
        cell.classList.add("density-bar");
        cell.style.setProperty("--share", Math.max(0, 1 + Math.log10(value) / -LOWEST).toFixed(3));
      }
      return cell;
    });
    const element = h(i === own.active ? "div.row.active" : "div.row", { role: "row", id: `row-${place}`, "data-place": place, "aria-rowindex": i + 2, "aria-selected": String(i === own.active) }, cells);
    element.style.top = `${i * ROW}px`;
    return element;
  }

  function open(view, place) {
    view.own.active = Math.max(0, view.own.rows.indexOf(place));
    location.hash = view.population.href(view.population.number(place)).slice(1);
  }

  function onKey(event, view) {
    const { own, scroller } = view;
    const typing = event.target === view.search;
    const page = Math.max(1, Math.floor(scroller.clientHeight / ROW) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    if (event.key in steps && (typing || event.target === scroller || event.target === document.body || event.target.id === "main")) move(own.active + steps[event.key]);
    else if (!typing && event.target.tagName !== "INPUT" && event.target.tagName !== "SELECT" && (event.key === "Home" || event.key === "End")) move(event.key === "Home" ? 0 : own.rows.length - 1);
    else if (event.key === "Enter" && own.rows.length && (typing || event.target === scroller || event.target === document.body || event.target.id === "main")) open(view, own.rows[own.active]);
    else if (event.key === "Escape" && view.search.value) {
      view.search.value = "";
      change(view, { q: "" });
    } else if (event.key === "Escape") scroller.focus();
    else return false;
    return true;

    function move(to) {
      own.active = Math.max(0, Math.min(own.rows.length - 1, to));
      const top = own.active * ROW;
      const inside = scroller.clientHeight - view.head.offsetHeight;
      if (top < scroller.scrollTop) scroller.scrollTop = top;
      else if (top + ROW > scroller.scrollTop + inside) scroller.scrollTop = top + ROW - inside;
      draw(view);
    }
  }
})(window.lightsae);
