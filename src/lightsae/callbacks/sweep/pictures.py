"""The pictures of a sweep, drawn from its final figures: quality against sparsity, and figures by layer.

A family is a variant at one width. In both pictures it has one colour.
"""

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, product
from operator import itemgetter
from typing import Any, NamedTuple

from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox, BboxBase

from lightsae.callbacks.sweep.entries import (
    SweepEntry,
    differing,
    grouped,
    kind_of,
    layer_of,
    place_names,
    point_labels,
    words_for,
)
from lightsae.plotting import pareto_optimal, style_pane
from lightsae.sae import SiteRef

QUALITY = {"fve_no_sinks": "Variance explained (FVE), without sinks", "ce_recovered": "Cross-entropy recovered"}
BY_LAYER = {
    "fve_no_sinks": "Variance explained (FVE), without sinks",
    "l0": "Active latents per token (L0)",
    "dead_fraction": "Dead latents",
}
MARKERS = "osD^vphP<>X"
STYLES = ("-", "--", "-.", ":")
# A ratio of the largest to the smallest from which an axis is logarithmic.
WIDE = 6.0
# With more points than this, only Pareto-optimal ones are labelled.
MOST_LABELS = 28
# Failures far below predicting the mean would flatten all that matters.
LOWEST = -0.1

Colour = tuple[float, float, float, float]


class Point(NamedTuple):
    """An SAE in a panel."""

    x: float
    y: float
    entry: SweepEntry


# -- quality against sparsity -----------------------------------------------------------------------------------------


def draw_pareto(entries: Sequence[SweepEntry]) -> Figure | None:
    """Draw FVE and CE recovered against L0, or None where no entry has these figures.

    A line joins a family's SAEs of one site; the marker tells the site, a ring that no SAE that predicts
    the same sites is as good with fewer latents, or better with as many.
    """
    keys = [key for key in QUALITY if _points(entries, key)]
    if not keys:
        return None
    colours, places = _colours(entries), place_names(entries)
    ordered = sorted(set(places.values()), key=lambda place: (kind_of(place), layer_of(place) or 0, place))
    markers = dict(zip(ordered, cycle(MARKERS), strict=False))
    figure, panels = _figure(len(keys), 5.6 if len(keys) == 1 else 10.5, 5.2)
    labels = point_labels(entries, places)
    for axes, key in zip(panels, keys, strict=True):
        points = _points(entries, key)
        # Alone at its site, an SAE is the best of one.
        rivals = [group for group in grouped(points, _predicts).values() if len(group) > 1]
        best = {p.entry.name for group in rivals for p in pareto_optimal(group)}
        for line in grouped(points, lambda p: (p.entry.family, places[p.entry.name])).values():
            line.sort(key=lambda p: p.x)
            colour = colours[line[0].entry.family]
            axes.plot([p.x for p in line], [p.y for p in line], color=colour, linewidth=1.2, alpha=0.6, zorder=2)
            for p in line:
                edge = ("black", 1.3) if p.entry.name in best else ("white", 0.8)
                look: dict[str, Any] = {"color": colour, "markeredgecolor": edge[0], "markeredgewidth": edge[1]}
                axes.plot(p.x, p.y, markers[places[p.entry.name]], markersize=7, zorder=3, **look)
        style_pane(axes, QUALITY[key], "Active latents per token (L0)")
        axes.margins(0.1, 0.12)
        _scale(axes, "x", [p.x for p in points])
    handles = [Line2D([], [], color=colour, marker="o", label=family) for family, colour in colours.items()]
    if len(markers) > 1:
        handles += [Line2D([], [], color="0.35", marker=m, linestyle="", label=place) for place, m in markers.items()]
    ring: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markeredgewidth": 1.3, "markersize": 7}
    handles.append(Line2D([], [], marker="o", linestyle="", label="Pareto-optimal", **ring))
    notes = _below(entries, keys)
    if len({tuple(entry.predicted) for entry in entries}) > 1:
        notes.insert(0, "Comparable, and Pareto-optimal, among SAEs that predict the same site.")
    _legend(figure, handles, notes)
    # Labels are placed last, where everything else is already.
    figure.draw_without_rendering()
    for axes, key in zip(panels, keys, strict=True):
        labelled = points = _points(entries, key)
        if len(points) > MOST_LABELS:
            labelled = [p for group in grouped(points, _predicts).values() for p in pareto_optimal(group)]
        texts = [(p.x, p.y, labels[p.entry.name], colours[p.entry.family]) for p in labelled]
        place_labels(axes, texts, [(p.x, p.y) for p in points])
    return figure


# -- figures by layer -------------------------------------------------------------------------------------------------


def draw_layers(entries: Sequence[SweepEntry]) -> Figure | None:
    """Draw FVE, L0 and the dead share by layer, or None where the entries do not differ in site.

    Where a site's name holds no layer, or all are of one layer, the sites stand side by side by name. Left out are
    SAEs that read several sites and, where others are followed through the layers, those of a single one.
    """
    entries = [entry for entry in entries if len(entry.read) == 1 and len(entry.predicted) == 1]
    places = place_names(entries)
    layers = {entry.name: layer_of(entry.read[0].site) for entry in entries}
    numeric = None not in layers.values() and len(set(layers.values())) > 1
    names = list(dict.fromkeys(places.values()))
    keys = [key for key in BY_LAYER if any(entry.figures.get(key) is not None for entry in entries)]
    if len(names) < 2 or not keys:
        return None
    at = {name: float(layers[name] or 0) if numeric else float(names.index(place)) for name, place in places.items()}
    kinds = {name: kind_of(place) if numeric else "" for name, place in places.items()}
    lines = _lines(entries, at, kinds)
    through = {label: line for label, line in lines.items() if len({at[entry.name] for entry in line}) > 1}
    lines = through or lines
    entries = [entry for line in lines.values() for entry in line]
    colours = _colours(entries)
    figure, panels = _figure(len(keys), 4.3 * len(keys), 4.4)
    handles, drawn = [], Counter[str]()
    for label, line in lines.items():
        family = line[0].family
        look: dict[str, Any] = {"color": colours[family], "marker": MARKERS[drawn[family] % len(MARKERS)]}
        look |= {"linestyle": STYLES[drawn[family] % len(STYLES)], "markeredgecolor": "white", "markersize": 7}
        handles.append(Line2D([], [], label=label, **look))
        drawn[family] += 1
        for axes, key in zip(panels, keys, strict=True):
            line.sort(key=lambda entry: at[entry.name])
            values = [y if (y := entry.figures.get(key)) is not None and y >= LOWEST else math.nan for entry in line]
            axes.plot([at[entry.name] for entry in line], values, clip_on=key == "fve_no_sinks", zorder=3, **look)
    for axes, key in zip(panels, keys, strict=True):
        values = [y for entry in entries if (y := entry.figures.get(key)) is not None]
        style_pane(axes, BY_LAYER[key], "Layer" if numeric else "")
        if numeric and len(set(at.values())) > 12:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        elif numeric:
            axes.set_xticks(sorted(set(at.values())))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        else:
            axes.set_xticks(range(len(names)), names, rotation=20, ha="right", rotation_mode="anchor")
        axes.margins(x=0.06)
        if key == "l0" and not _scale(axes, "y", values):
            axes.set_ylim(0, 1.1 * max(values) or 1.0)
        if key == "dead_fraction":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
            axes.set_ylim(0, max(0.01, 1.1 * max(values)))
    _legend(figure, handles, _below(entries, keys))
    return figure


def _lines(
    entries: Sequence[SweepEntry], at: Mapping[str, float], kinds: Mapping[str, str]
) -> dict[str, list[SweepEntry]]:
    """Return a line per family and kind of site, or several if a family has several SAEs at one place."""
    lines: dict[str, list[SweepEntry]] = {}
    for (family, kind), group in grouped(entries, lambda e: (e.family, kinds[e.name])).items():
        label = family + (f", {kind}" if len(set(kinds.values())) > 1 else "")
        if len({at[e.name] for e in group}) == len(group):
            lines[label] = group
            continue
        keys = differing(group)
        for words, part in grouped(group, lambda e: words_for(e, keys)).items():  # noqa: B023
            lines[f"{label}, {words}" if words else label] = part
    return lines


# -- drawing ----------------------------------------------------------------------------------------------------------


def place_labels(
    axes: Axes, labels: Iterable[tuple[float, float, str, Colour]], points: Iterable[tuple[float, float]]
) -> None:
    """Write a text beside each point, where it covers as little as may be of other texts and points.

    Args:
        axes: Drawn and laid out already.
        labels: x, y, text and colour, each.
        points: All points.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    inside, pixel = axes.get_window_extent().frozen(), figure.dpi / 72
    taken = [Bbox([xy, xy]).padded(4.5 * pixel) for xy in axes.transData.transform(list(points))]
    directions = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)]
    for x, y, text, colour in labels:
        note = axes.annotate(text, (x, y), (0, 0), textcoords="offset points", fontsize=8, ha="center", va="center")
        extent = note.get_window_extent()
        spots = []
        for place, (distance, (right, up)) in enumerate(product((6, 13, 22, 32), directions)):
            dx = right * (extent.width / 2 + distance * pixel)
            dy = up * (extent.height / 2 + distance * pixel)
            box = extent.translated(dx, dy).padded(pixel, pixel / 2)
            area = box.width * box.height
            covered = sum(_common(box, other) for other in taken) + area - _common(box, inside)
            spots.append((covered / area + 0.004 * place, dx, dy, box))
        _, dx, dy, box = min(spots, key=itemgetter(0))
        note.set_position((dx / pixel, dy / pixel))
        note.set_color((0.7 * colour[0], 0.7 * colour[1], 0.7 * colour[2]))
        note.set_path_effects([patheffects.withStroke(linewidth=2, foreground="white")])
        note.set_in_layout(False)
        taken.append(box)


def _common(a: BboxBase, b: BboxBase) -> float:
    """Return the area that two boxes have in common."""
    common = Bbox.intersection(a, b)
    return 0.0 if common is None else float(common.width * common.height)


def _figure(panels: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _scale(axes: Axes, which: str, values: Sequence[float]) -> bool:
    """Make an axis logarithmic, with ticks at 1, 2 and 5, where its values call for it."""
    if not values or min(values) <= 0 or max(values) / min(values) < WIDE:
        return False
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
    return True


def _legend(figure: Figure, handles: Sequence[Line2D], notes: Sequence[str]) -> None:
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 72 / (44 + 5.2 * longest))))
    options: dict[str, Any] = {"frameon": False, "fontsize": 9, "ncols": columns, "handlelength": 2.6}
    if notes:
        letters = int(figure.get_figwidth() * 72 / 4.8)
        options |= {"title": "\n".join(textwrap.fill(note, letters) for note in notes), "title_fontsize": 8.5}
    # What the legend takes is not taken from the panels.
    rows = -(-len(handles) // columns) + options.get("title", "").count("\n") + bool(notes)
    figure.set_figheight(figure.get_figheight() + 0.19 * (rows - 1))
    figure.legend(handles=list(handles), loc="outside lower center", **options)


def _colours(entries: Sequence[SweepEntry]) -> dict[str, Colour]:
    families = list(dict.fromkeys(entry.family for entry in entries))
    if len(families) <= 10:
        return {family: colormaps["tab10"](i) for i, family in enumerate(families)}
    return {family: colormaps["turbo"](0.05 + 0.9 * i / (len(families) - 1)) for i, family in enumerate(families)}


def _points(entries: Iterable[SweepEntry], key: str) -> list[Point]:
    figures = ((entry.figures.get("l0"), entry.figures.get(key), entry) for entry in entries)
    return [Point(x, y, entry) for x, y, entry in figures if x is not None and y is not None and y >= LOWEST]


def _below(entries: Iterable[SweepEntry], keys: Iterable[str]) -> list[str]:
    """Return the notes on figures that are too low to be drawn."""
    notes = []
    for key in keys:
        low = [f"{e.name} {y:.3g}" for e in entries if (y := e.figures.get(key)) is not None and y < LOWEST]
        notes += [f"Below the picture, {key}: {', '.join(low)}."] if low else []
    return notes


def _predicts(point: Point) -> tuple[SiteRef, ...]:
    return tuple(point.entry.predicted)
