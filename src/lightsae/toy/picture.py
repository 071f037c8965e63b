"""The picture of superposition: each feature's direction, one panel a sparsity."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from lightsae.toy.superposition import Solution

LIMIT = 1.4


def draw(solutions: Sequence[Solution]) -> Figure:
    """Draw the columns of W where there are two dimensions, W^T W where there are more.

    Lighter colours are the more important features, as in the source.
    """
    columns = min(len(solutions), 6)
    rows = -(-len(solutions) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.45 * rows + 0.3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, solution in zip(panels, solutions, strict=False):
        if solution.W.shape[0] == 2:
            _draw_directions(axes, solution)
        else:
            _draw_products(axes, solution)
        of = solution.W.shape[1]
        axes.set_title(f"sparsity {solution.sparsity:g}\n{solution.represented} of {of} features", fontsize=9)
    for axes in panels[len(solutions) :]:
        axes.set_axis_off()
    return figure


def _draw_directions(axes: Axes, solution: Solution) -> None:
    features = solution.W.shape[1]
    colours = colormaps["viridis"](np.linspace(0.95, 0.1, features))
    axes.add_patch(Circle((0, 0), 1, fill=False, linewidth=0.8, linestyle=":", edgecolor="0.6"))
    # The least important first, so that what matters lies on top.
    for feature in reversed(range(features)):
        x, y = solution.W[:, feature].tolist()
        axes.plot([0, x], [0, y], color=colours[feature], linewidth=2.6, solid_capstyle="round", zorder=2)
        axes.plot([x], [y], "o", color=colours[feature], markersize=6, markeredgecolor="0.25", markeredgewidth=0.5)
    axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set_color("0.85")


def _draw_products(axes: Axes, solution: Solution) -> None:
    product = (solution.W.T @ solution.W).numpy()
    axes.imshow(product, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel("features, most important first", fontsize=7)
