"""Effect and cost against dose: a figure, for papers, for TensorBoard, and for a feature's page."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightsae.analysis.labels.wording import shortened
from lightsae.analysis.panels.measures import Measure
from lightsae.analysis.panels.sweep import Sweep
from lightsae.analysis.steering.interventions import UNITS
from lightsae.plotting import STYLE

_PANES = (Measure.CONCEPT, Measure.FIRES, Measure.TARGET, Measure.FOLLOWS, Measure.PPL_UNTOUCHED, Measure.KL)


def draw_sweep(sweep: Sweep) -> Figure:
    """Return the figure of a sweep: a pane per measure, a line per arm: its gain over no steering, prompt by prompt."""
    measures = [measure for measure in _PANES if measure in sweep.plain.values]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 5.6), layout="constrained")
        panes = figure.subplots(2, 3)
        for axes, measure in zip(panes.flat, measures, strict=False):
            _pane(axes, sweep, measure)
            axes.set_title(measure.caption)
            axes.set_xlabel(f"{sweep.settings.kind}: dose, {UNITS[sweep.settings.unit]}")
        for axes in list(panes.flat)[len(measures) :]:
            axes.set_axis_off()
        panes.flat[0].legend(fontsize=7)
        chosen = "no dose within the cost limit" if sweep.chosen is None else f"chosen dose {sweep.chosen:g}"
        label = shortened(sweep.concept.label or "unlabelled", 90)
        figure.suptitle(f"feature {sweep.concept.feature}: {label}  ({chosen})", x=0.01, ha="left", fontsize=10)
    return figure


def _pane(axes: Axes, sweep: Sweep, measure: Measure) -> None:
    for arm in dict.fromkeys(one.arm for one in sweep.measured):
        points = sorted((one for one in sweep.measured if one.arm == arm), key=lambda one: one.dose)
        gains = [(one.dose, gain) for one in points if (gain := one.shift(measure, sweep.plain)) is not None]
        if arm.line:
            for _, gain in gains:
                axes.axhline(gain.mean, color=arm.colour, ls=arm.line, lw=1, label=arm.words)
            continue
        nothing = sweep.plain.shift(measure, sweep.plain)
        assert nothing is not None
        line = sorted([(0.0, nothing), *gains], key=lambda point: point[0])
        axes.plot([d for d, _ in line], [g.mean for _, g in line], "o-", ms=3, color=arm.colour, label=arm.words)
        banded = [(dose, gain.low, gain.high) for dose, gain in line if gain.low is not None]
        if banded:
            places, low, high = zip(*banded, strict=True)
            axes.fill_between(places, low, high, color=arm.colour, alpha=0.15, lw=0)
    if sweep.chosen is not None:
        axes.axvline(sweep.chosen, color="#dddddd", lw=4, zorder=0)
