// Plotly, loaded when the first figure is asked for, in the page's own colours.
"use strict";
(function (ls) {
  let loading = null;
  const drawn = new Set();

  function colour(name) {
    const probe = document.createElement("span");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }
  ls.colours = () => Object.fromEntries(["ink", "quiet", "line", "surface", "accent", "hot", "before", "high", "medium", "withheld", "unlabelled", "rare", "dead"].map((name) => [name, colour(name)]));
  // Classes beyond the tiers: Okabe and Ito's colours, told apart by most eyes, and then greys.
  ls.CLASSES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a900", "#7b5ea7", "#8c8c8c"];

  // make(colours) returns [traces, layout]; called again when light and dark change.
  ls.plot = async function (element, make, { onClick = null, onHover = null, tools = false } = {}) {
    element.setAttribute("aria-busy", "true");
    try {
      loading = loading || ls.script("assets/plotly.min.js");
      await loading;
      if (!element.isConnected) return;
      const one = { element, make, tools };
      draw(one);
      if (onClick) element.on("plotly_click", onClick);
      if (onHover) {
        element.on("plotly_hover", onHover);
        element.on("plotly_unhover", () => ls.tip(null));
      }
      for (const old of drawn) if (!old.element.isConnected) drawn.delete(old);
      drawn.add(one);
    } catch (error) {
      ls.fill(element, ls.h("p.quiet", {}, `The figure cannot be drawn: ${error.message}`));
    } finally {
      element.removeAttribute("aria-busy");
    }
  };

  function draw({ element, make, tools }) {
    const colours = ls.colours();
    const [traces, layout] = make(colours);
    const axis = { gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.line, automargin: true };
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "ui-sans-serif, system-ui, sans-serif", size: 12, color: colours.quiet },
      margin: { l: 8, r: 8, t: 8, b: 8 },
      hoverlabel: { bgcolor: colours.surface, bordercolor: colours.line, font: { color: colours.ink } },
      modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: colours.quiet, activecolor: colours.accent },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, itemsizing: "constant" },
    };
    const axes = { xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
    const bar = tools ? { displaylogo: false, modeBarButtons: [["pan2d", "zoom2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]], scrollZoom: true } : { displayModeBar: false };
    window.Plotly.react(element, traces, { ...base, ...layout, legend: { ...base.legend, ...layout.legend }, ...axes }, { responsive: true, ...bar });
  }

  ls.redraw = function () {
    for (const one of drawn) if (one.element.isConnected) draw(one);
  };
})(window.lightsae);
