"""Quality against sparsity: a point per SAE, a mark per recipe with its noise, a ring around what nothing dominates."""

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from lightsae.analysis.compare.noise import Readings
from lightsae.analysis.compare.run import Compared, Comparison
from lightsae.analysis.compare.verdicts import QUALITY
from lightsae.plotting import STYLE, add_legend, pareto_optimal, style_pane

_TITLES = {
    "fve_no_sinks": "Variance explained (FVE), without sinks",
    "ce_recovered_no_sinks": "Cross-entropy recovered, without sinks",
    "fve": "Variance explained (FVE)",
    "ce_recovered": "Cross-entropy recovered",
}


def draw_pareto(comparison: Comparison) -> Figure:
    """Draw variance explained and, where it was measured, loss recovered against L0.

    Bars are 95% intervals of a recipe's mean over seeds; they hold none of the text's noise, which is the same for all.
    """
    recipes = comparison.recipes
    # Those with and without sinks tell the same story; of both kinds one.
    panes = [name for name in QUALITY[:2] if all(name in one.readings for one in recipes)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 4.4 * len(panes), 4.2), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(panes), squeeze=False)[0], panes, strict=True):
            _draw_pane(axes, recipes, name)
        add_legend(figure.axes[0], fontsize=8, loc="best")
    return figure


def _draw_pane(axes: Axes, recipes: Sequence[Compared], name: str) -> None:
    best = {recipe for *_, recipe in pareto_optimal([(one.l0, one.readings[name].mean, one.name) for one in recipes])}
    for number, one in enumerate(recipes):
        l0, quality = one.readings["l0"], one.readings[name]
        colour = colormaps["tab10"](number % 10)
        axes.plot(l0.values, quality.values, "o", color=colour, markersize=3.5, alpha=0.5, zorder=2)
        edge: dict[str, Any] = {"markeredgecolor": "black" if one.name in best else "white", "markeredgewidth": 1.3}
        several = f", {len(quality)} SAEs" if len(quality) > 1 else ""
        axes.errorbar(
            l0.mean, quality.mean, xerr=_half(l0), yerr=_half(quality), fmt="o", color=colour, markersize=8,
            capsize=2, elinewidth=1, zorder=3, label=one.name + several, **edge,
        )  # fmt: skip
    style_pane(axes, _TITLES[name], "Active latents per token (L0)")
    axes.margins(0.15)
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _half(readings: Readings) -> float:
    """Return half of the 95% interval of the mean over seeds; 0 of a single one."""
    if len(readings) < 2:
        return 0.0
    return float(stats.t.isf(0.025, len(readings) - 1) * (readings.variance / len(readings)) ** 0.5)
