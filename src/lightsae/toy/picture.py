"""The picture of superposition, a panel for each sparsity.

Two dimensions: each feature's direction, as in the paper's first figure. Else: W^T W as a heat map, and under it each
feature's norm, as in its second kind.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import Normal, Stroke

from lightsae.toy.superposition import Solution

COLUMNS = 6
NAMED = 10
INK = "0.25"
QUIET = "0.8"
# In inches: a panel, what stands above it, the bars under a heat map, and the margins around all.
PANEL, GAP, TITLE, BARS = 2.0, 0.14, 0.52, 0.65
LEFT, TOP, LEGEND, COLOUR_BARS, NARROWEST = 0.1, 0.06, 0.34, 0.75, 4.8


def draw(solutions: Sequence[Solution]) -> Figure:
    """Draw one panel for each solution; all have the same features and dimensions."""
    in_plane = len(solutions[0].W) == 2
    largest = max(float(solution.norms.max()) for solution in solutions)
    columns, rows = min(len(solutions), COLUMNS), -(-len(solutions) // COLUMNS)
    left, right = (LEFT, LEFT) if in_plane else (0.45, COLOUR_BARS)
    row_height = TITLE + PANEL + (0 if in_plane else GAP + BARS) + GAP
    width = left + columns * (PANEL + GAP) - GAP + right
    height = TOP + rows * row_height + (LEGEND if in_plane else 0.1)
    figure = Figure(figsize=(max(width, NARROWEST), height))
    left += max(0.0, NARROWEST - width) / 2

    def panel(column: int, top: float, wide: float = PANEL, high: float = PANEL) -> Axes:
        size = figure.get_size_inches()
        x, y = left + column * (PANEL + GAP), height - top - high
        return figure.add_axes((x / size[0], y / size[1], wide / size[0], high / size[1]))

    for place, solution in enumerate(solutions):
        row, column = divmod(place, COLUMNS)
        top = TOP + row * row_height + TITLE
        first = panel(column, top)
        _title(first, solution)
        if in_plane:
            _draw_directions(first, solution, limit=1.12 * max(largest, 1.1))
        else:
            _draw_products(first, solution)
            bars = panel(column, top + PANEL + GAP, high=BARS)
            _draw_norms(bars, solution, limit=1.1 * max(largest, 1.0), named=column == 0)
    if in_plane:
        _name_colours(figure, solutions[0].W.shape[1])
    else:
        top = TOP + TITLE
        _explain_colours(panel(columns, top, wide=0.1), "RdBu_r", -1, "$W^T W$")
        _explain_colours(panel(columns, top + PANEL + GAP, wide=0.1, high=BARS), "viridis", 0, "interference")
    return figure


def _title(axes: Axes, solution: Solution) -> None:
    features = solution.W.shape[1]
    axes.set_title(f"S = {solution.sparsity:g}", fontsize=11, pad=17)
    below = f"{solution.represented} of {features} features"
    axes.text(0.5, 1.03, below, transform=axes.transAxes, ha="center", fontsize=8.5, color="0.4")


def _colours(features: int) -> Any:
    # Lighter is more important. Not up to the end of the scale, which is too light for a white page.
    return colormaps["viridis"](np.linspace(0.93, 0.05, features))


def _draw_directions(axes: Axes, solution: Solution, limit: float) -> None:
    features = solution.W.shape[1]
    colours = _colours(features)
    axes.axhline(0, color="0.92", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.92", linewidth=0.8, zorder=0)
    axes.add_patch(Circle((0, 0), 1, fill=False, linewidth=0.8, linestyle=(0, (4, 4)), edgecolor="0.7", zorder=1))
    outline = [Stroke(linewidth=3.4, foreground=INK), Normal()]
    # The least important first: what matters lies on top.
    for order, feature in enumerate(reversed(range(features))):
        x, y = solution.W[:, feature].tolist()
        axes.plot(
            *([0, x], [0, y]),
            color=colours[feature],
            linewidth=2.6,
            solid_capstyle="round",
            path_effects=outline,
            zorder=2 + order / features,
        )
        axes.plot([x], [y], "o", color=colours[feature], markersize=7, mec=INK, mew=0.6, zorder=3 + order / features)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color(QUIET)


def _draw_products(axes: Axes, solution: Solution) -> None:
    axes.imshow((solution.W.T @ solution.W).numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(QUIET)


def _draw_norms(axes: Axes, solution: Solution, limit: float, named: bool) -> None:
    colours = colormaps["viridis"](solution.interference.clamp(0, 1).numpy())
    features = len(solution.norms)
    axes.bar(range(features), solution.norms.tolist(), width=0.9, color=colours)
    axes.set(xlim=(-0.5, features - 0.5), ylim=(0, limit), xticks=[], yticks=[0, 1])
    axes.tick_params(labelleft=named, labelsize=7, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    if named:
        axes.set_ylabel("norm", fontsize=8)


def _name_colours(figure: Figure, features: int) -> None:
    colours = _colours(features)
    if features > NAMED:
        # Of many features, the first and the last tell the scale.
        entries, named = [], {0: "feature 1 (most important)", features - 1: f"feature {features}"}
    else:
        entries = [(Line2D([], [], linestyle=""), "Features, the most important first:")]
        named = {i: str(i + 1) for i in range(features)}
    for i, name in named.items():
        entries.append(
            (Line2D([], [], linestyle="", marker="o", markersize=7, color=colours[i], mec=INK, mew=0.6), name)
        )
    figure.legend(
        *zip(*entries, strict=True),
        loc="lower center",
        ncols=len(entries),
        frameon=False,
        fontsize=8.5,
        handletextpad=0.2,
        columnspacing=1.0,
    )


def _explain_colours(axes: Axes, cmap: str, low: int, label: str) -> None:
    assert isinstance(axes.figure, Figure)
    bar = axes.figure.colorbar(ScalarMappable(Normalize(low, 1), cmap), cax=axes, ticks=[*range(low, 2)])
    bar.set_label(label, fontsize=8)
    axes.tick_params(labelsize=7, length=2)
    bar.outline.set_visible(False)
