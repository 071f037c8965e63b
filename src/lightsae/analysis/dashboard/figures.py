"""Figures of a whole dictionary for papers: how often features fire, how well labels hold, before and after, maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightsae.analysis.dashboard.maps import Map
from lightsae.analysis.dictionary.figures import labelled, median_of, tested_scores
from lightsae.plotting import STYLE, add_legend

Tables = Mapping[str, pa.Table]
# Name, table of features and colour of each population.
Populations = Sequence[tuple[str, pa.Table, str]]
BEFORE, AFTER = "#a8632a", "#0b6e69"
TIERS = {
    "high": "#0f7a4f",
    "medium": "#2863c5",
    "withheld": "#8a6d1f",
    "unlabelled": "#9a9fa8",
    "rare": "#b09cc4",
    "dead": "#d3ccc3",
}
_COHERENCES = ("window_coherence", "document_coherence")


def draw_figures(
    tables: Tables, *, neurons: Tables | None = None, maps: Sequence[Map] = (), kind: str = ""
) -> dict[str, Figure]:
    """Return the figures by name: density, labels (if any was tested), coherence (if known), map_1 ...

    `kind` is what the neurons are called: raw neurons, or coordinates of the site.
    """
    sides = [(f"{len(tables['features']):,} features", tables, AFTER)]
    if neurons is not None:
        sides.insert(0, (f"{len(neurons['features']):,} {kind or 'raw neurons'}", neurons, BEFORE))
    features, populations = tables["features"], [(name, side["features"], colour) for name, side, colour in sides]
    with matplotlib.rc_context(STYLE):
        figures = {"density": _density(populations)}
        if len(tables["labels"]):
            figures["labels"] = _labels(sides)
        known = [c for c in _COHERENCES if features[c].null_count < len(features)]
        if known:
            figures["coherence"] = _coherence(populations, known)
        for number, one in enumerate(maps, start=1):
            figures[f"map_{number}"] = _map(one, features)
    return figures


def write_figures(
    folder: Path, tables: Tables, *, neurons: Tables | None = None, maps: Sequence[Map] = (), kind: str = ""
) -> list[Path]:
    """Write the figures as PNG into an existing folder that the caller stages; returns the files."""
    written = []
    for name, figure in draw_figures(tables, neurons=neurons, maps=maps, kind=kind).items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=200)
        written.append(path)
    return written


def numbers(features: pa.Table, column: str) -> NDArray[np.float64]:
    """Return the values of a column that are known."""
    values: NDArray[np.float64] = features[column].drop_null().to_numpy().astype(np.float64)
    return values[np.isfinite(values)]


def _density(populations: Populations) -> Figure:
    figure = Figure(figsize=(4.2, 2.8), layout="constrained")
    axes = figure.subplots()
    for name, table, colour in populations:
        frequencies = numbers(table, "frequency")
        fired = np.log10(frequencies[frequencies > 0])
        silent = len(table) - len(fired)
        _histogram(axes, fired, f"{name}, {silent:,} silent", colour)
    axes.set(xlabel="density: share of tokens on which it fires (log10)", ylabel="share")
    # Above the pane, which the histograms fill.
    add_legend(axes, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _labels(sides: Sequence[tuple[str, Tables, str]]) -> Figure:
    """Draw precision and recall of every tested feature that has a rule or a label, whether it passed or not."""
    figure = Figure(figsize=(3.4 * len(sides), 3.4), layout="constrained")
    for axes, (name, tables, _) in zip(figure.subplots(1, len(sides), squeeze=False)[0], sides, strict=True):
        columns = tested_scores(tables)
        for tier, colour in TIERS.items():
            part = columns[columns.tier == tier].dropna()
            if len(part):
                axes.scatter(part.recall, part.precision, s=7, color=colour, alpha=0.6, lw=0, label=tier)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision", aspect="equal")
        shown = labelled(tables["features"]["tier"].to_pylist())
        share = "" if shown["labelled_share"] is None else f" ({shown['labelled_share']:.0%})"
        axes.set_title(f"{name}: {shown['labelled']:,} of {len(columns):,} tested labelled{share}")
        add_legend(axes, loc="lower left")
    return figure


def _coherence(populations: Populations, columns: list[str]) -> Figure:
    figure = Figure(figsize=(3.6 * len(columns), 2.8), layout="constrained")
    for axes, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        for name, table, colour in populations:
            values = numbers(table, column)
            if len(values):
                median, n = median_of("", values).values()
                middle = f", median {median:.2f} (n = {n:,})" if median is not None else ""
                _histogram(axes, values, f"{name}{middle}", colour)
        axes.set(xlabel=column.replace("_", " "), ylabel="share")
        add_legend(axes)
    return figure


def _histogram(axes: Axes, values: NDArray[np.float64], name: str, colour: str) -> None:
    if len(values):
        axes.hist(values, bins=40, weights=np.full(len(values), 1 / len(values)), color=colour, alpha=0.55, label=name)


def _map(one: Map, features: pa.Table) -> Figure:
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    x, y = one.coordinates.T
    size = 2 if len(x) > 2000 else 6
    if one.links is not None:
        tier_of = dict(zip(features["feature"].to_pylist(), features["tier"].to_pylist(), strict=True))
        classes = np.array([str(tier_of.get(link)) for link in one.links.tolist()])
        _scatter(axes, x, y, classes, [t for t in TIERS if (classes == t).any()], list(TIERS.values()), size)
    elif one.colours and isinstance(one.colours[0].values, np.ndarray):
        dots = axes.scatter(x, y, s=size, c=one.colours[0].values, cmap="viridis", lw=0)
        figure.colorbar(dots, ax=axes, shrink=0.6, label=one.colours[0].name)
    elif one.colours:
        classes = np.array([str(value) for value in one.colours[0].values])
        names, counts = np.unique(classes, return_counts=True)
        frequent = names[np.argsort(-counts)][:9].tolist()
        _scatter(axes, x, y, classes, frequent, [f"C{i}" for i in range(9)], size)
    else:
        axes.scatter(x, y, s=size, color=AFTER, lw=0)
    axes.set_title(one.name)
    axes.set_axis_off()
    axes.set_aspect("equal", adjustable="datalim")
    figure.supxlabel(one.method, fontsize=6, color="0.4", wrap=True)
    return figure


def _scatter(
    axes: Axes, x: NDArray[Any], y: NDArray[Any], classes: NDArray[Any], named: list[str], colours: list[str], size: int
) -> None:
    rest = ~np.isin(classes, named)
    axes.scatter(x[rest], y[rest], s=size, color="0.8", lw=0)
    for place, name in enumerate(named):
        members = classes == name
        colour = TIERS.get(name, colours[place])
        # matplotlib takes a name that begins with _ for one to be left out of the legend.
        axes.scatter(x[members], y[members], s=size, color=colour, lw=0, label=f" {name}")
    add_legend(axes, markerscale=3, fontsize=7, loc="upper left")
