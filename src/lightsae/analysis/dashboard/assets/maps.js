// Maps: points in the plane, coloured by what is known of them; hovering tells, a click opens the feature.
"use strict";
(function (ls) {
  const h = ls.h;
  const CLASSES_SHOWN = 8;

  ls.mapPage = async function (main, params) {
    const { maps } = ls.value("manifest");
    const groups = [...new Set(maps.map((map) => map.group))];
    const features = await ls.population("features");
    const selected = Math.max(0, groups.indexOf(params.get("map")));
    const chosen = { colour: params.get("colour") };
    const holder = h("section.page.maps");
    ls.fill(main, holder);
    const tabs = groups.map((group) => ({ name: group, make: () => show(group) }));
    ls.fill(holder, h("h1", {}, "Maps"), ls.tabs("Maps", tabs, selected, (i) => remember(groups[i])));
    ls.page = {};

    function remember(group) {
      const now = new URLSearchParams({ map: group, ...(chosen.colour ? { colour: chosen.colour } : {}) });
      history.replaceState(null, "", `#/map?${now}`);
    }

    function show(group) {
      const area = h("div.mapgroup", {}, h("p.quiet", { role: "status" }, "Loading…"));
      const numbers = maps.flatMap((map, i) => (map.group === group ? [i] : []));
      Promise.all(numbers.map((i) => ls.load(`map-${i}`))).then(
        (found) => area.isConnected && place(area, group, found),
        (error) => ls.fill(area, h("p", {}, error.message))
      );
      return area;
    }

    function place(area, group, found) {
      const names = [...new Set(found.flatMap((map) => colourings(map, features).map((one) => one.name)))];
      if (!names.includes(chosen.colour)) chosen.colour = names[0] || null;
      const select = h("select", { id: "colour", "aria-label": "Colour by", onchange: () => ((chosen.colour = select.value), remember(group), place(area, group, found)) });
      for (const name of names) select.append(h("option", { value: name, selected: name === chosen.colour }, name));
      const plots = found.map((map) => {
        const figure = h("div.map", { role: "img", "aria-label": `${map.name}: ${map.x.length} points` });
        return { map, figure, part: h("figure", {}, h("figcaption", {}, h("strong", {}, map.name), h("span.quiet", {}, ` ${map.method}`)), figure) };
      });
      ls.fill(area, names.length > 0 && h("p", {}, h("label", {}, "colour by ", select), found.some((map) => map.links) && h("span.quiet", {}, "  hover for the label, click to open the feature")), h("div.maprow", {}, plots.map((one) => one.part)));
      for (const { map, figure } of plots) plot(figure, map, features, chosen.colour);
    }
  };

  // What a map brings itself, and what is known of the features that its points link to.
  function colourings(map, features) {
    const own = map.colours.map((one) => ({ ...one, classes: typeof one.values.find((value) => value !== null) === "string" }));
    if (!map.links) return own;
    const of = (get) => map.links.map((number) => (features.place(number) === undefined ? null : get(features.place(number))));
    const known = [{ name: "tier", classes: true, tiers: true, values: of((place) => features.code("tier", place)) }];
    for (const [key, name, log] of [["frequency", "density", true], ["precision", "precision", false], ["window_coherence", "window coherence", false], ["ablation_kl", "KL when removed", true]])
      if (features.columns[key]) known.push({ name, log, values: of((place) => features.value(key, place)) });
    return [...own, ...known];
  }

  function plot(figure, map, features, chosen) {
    const colouring = colourings(map, features).find((one) => one.name === chosen);
    const all = map.x.map((_, i) => i);
    const size = map.x.length > 10000 ? 3 : map.x.length > 2000 ? 4.5 : 6;
    const points = (rows, name, marker) => ({ type: "scattergl", mode: "markers", x: rows.map((i) => map.x[i]), y: rows.map((i) => map.y[i]), customdata: rows, name, hoverinfo: "none", marker: { size, opacity: 0.8, ...marker } });
    const make = (c) => {
      let traces = [points(all, "", { color: c.accent })];
      if (colouring && colouring.classes) traces = classes(colouring, all).map(([name, rows], i) => points(rows, plainText(name), { color: colouring.tiers ? c[name] || c.quiet : ls.CLASSES[i % ls.CLASSES.length] })).reverse();
      else if (colouring) traces = scaled(colouring, all, points, c);
      const axis = { visible: false };
      return [traces, { height: Math.max(420, Math.min(760, window.innerHeight - 230)), hovermode: "closest", dragmode: "pan", showlegend: traces.length > 1, legend: { traceorder: "reversed" }, xaxis: axis, yaxis: { ...axis, scaleanchor: "x" } }];
    };
    const hover = (event) => {
      const i = event.points[0].customdata;
      const lines = [];
      if (map.links) {
        const place = features.place(map.links[i]);
        const label = place === undefined ? null : features.label(place);
        lines.push(`${map.links[i]}  ${label === null ? "unlabelled" : ls.visibleText(label)}`);
        if (place !== undefined) lines.push(`${features.code("tier", place)}, density ${ls.percent(features.value("frequency", place))}, on ${features.tokens(place).map((text) => `“${ls.visibleText(text, true)}”`).join(" ")}`);
      }
      if (map.texts) lines.push(ls.visibleText(map.texts[i]));
      if (colouring && !colouring.tiers) lines.push(`${colouring.name}: ${typeof colouring.values[i] === "number" ? ls.number(colouring.values[i]) : (colouring.values[i] ?? "–")}`);
      ls.tip(lines.join("\n"), event.event);
    };
    ls.plot(figure, make, { tools: true, onHover: hover, onClick: (event) => map.links && (location.hash = `#/feature/${map.links[event.points[0].customdata]}`) });
  }

  function classes(colouring, all) {
    const rows = new Map();
    for (const i of all) {
      if (!rows.has(colouring.values[i])) rows.set(colouring.values[i], []);
      rows.get(colouring.values[i]).push(i);
    }
    const sorted = [...rows].sort((a, b) => (colouring.tiers ? ls.TIER_ORDER.indexOf(a[0]) - ls.TIER_ORDER.indexOf(b[0]) : b[1].length - a[1].length));
    if (sorted.length <= CLASSES_SHOWN + 1) return sorted;
    return [...sorted.slice(0, CLASSES_SHOWN), ["other", sorted.slice(CLASSES_SHOWN).flatMap(([, some]) => some)]];
  }

  // Points without a value lie beneath, in grey.
  function scaled(colouring, all, points, c) {
    const value = (i) => (colouring.log ? (colouring.values[i] > 0 ? Math.log10(colouring.values[i]) : null) : colouring.values[i]);
    const known = all.filter((i) => value(i) !== null).sort((a, b) => value(a) - value(b));
    const values = known.map(value);
    const colorbar = { title: { text: plainText(colouring.name), side: "right" }, thickness: 10, outlinewidth: 0, len: 0.7, y: 0, yanchor: "bottom" };
    if (colouring.log) {
      const decades = [...Array(12).keys()].map((i) => i - 8).filter((i) => i >= values[0] - 0.5 && i <= values[values.length - 1] + 0.5);
      Object.assign(colorbar, { tickvals: decades, ticktext: decades.map((i) => ls.number(10 ** i, 2)) });
    }
    const unknown = all.filter((i) => value(i) === null);
    const scale = { color: values, colorscale: "Viridis", showscale: true, colorbar };
    return [...(unknown.length ? [points(unknown, "none", { color: c.line })] : []), { ...points(known, "", scale), showlegend: false }];
  }

  // Plotly takes names for a kind of markup.
  const plainText = (text) => ls.visibleText(String(text ?? "none")).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
})(window.lightsae);
