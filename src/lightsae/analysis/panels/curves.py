"""Effect and cost against dose: a figure, for papers, for TensorBoard, and for a feature's page."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightsae.analysis.labels.wording import shortened
from lightsae.analysis.panels.arms import FEATURE, NONE, PLACEBO, PROMPT, RANDOM, SAID, SECOND_RANDOM, SHUFFLED
from lightsae.analysis.panels.sweep import Sweep
from lightsae.analysis.steering.interventions import UNITS
from lightsae.plotting import STYLE

COLOURS = {
    FEATURE: "#0b6e69",
    RANDOM: "#a8632a",
    SECOND_RANDOM: "#c89468",
    PLACEBO: "#c9a227",
    SHUFFLED: "#7d5aa6",
    NONE: "#666666",
    PROMPT: "#2863c5",
}
_SHOWN = (
    ("concept", "label holds on the text: gain"),
    ("fires", "it fires on the text, untouched model: gain"),
    ("target", "probability of what it promotes: gain"),
    ("follows", "probability of what follows it: gain"),
    ("ppl_untouched", "perplexity, untouched model: ratio"),
    ("kl", "KL to the untouched model (nats)"),
)


def draw_sweep(sweep: Sweep) -> Figure:
    """Return the figure of a sweep: a pane a measure, a line an arm: its gain over no steering, prompt by prompt."""
    shown = [(name, title) for name, title in _SHOWN if name in sweep.plain.values]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 5.6), layout="constrained")
        panes = figure.subplots(2, 3)
        for axes, (name, title) in zip(panes.flat, shown, strict=False):
            _pane(axes, sweep, name)
            axes.set_title(title)
            axes.set_xlabel(f"{sweep.settings.kind}: dose, {UNITS[sweep.settings.unit]}")
        for axes in list(panes.flat)[len(shown) :]:
            axes.set_axis_off()
        panes.flat[0].legend(fontsize=7)
        label = sweep.concept.label or "unlabelled"
        chosen = "no dose within the cost limit" if sweep.chosen is None else f"chosen dose {sweep.chosen:g}"
        words = shortened(label, 90)
        figure.suptitle(f"feature {sweep.concept.feature}: {words}  ({chosen})", x=0.01, ha="left", fontsize=10)
    return figure


def _pane(axes: Axes, sweep: Sweep, measure: str) -> None:
    for arm in dict.fromkeys(one.arm for one in sweep.measured):
        points = sorted((one for one in sweep.measured if one.arm == arm), key=lambda one: one.dose)
        gains = [(one.dose, gain) for one in points if (gain := one.shift(measure, sweep.plain)) is not None]
        if arm in (NONE, PROMPT):
            for _, gain in gains:
                axes.axhline(gain.mean, color=COLOURS[arm], ls=":" if arm == NONE else "--", lw=1, label=SAID[arm])
            continue
        nothing = sweep.plain.shift(measure, sweep.plain)
        assert nothing is not None
        line = sorted([(0.0, nothing), *gains], key=lambda point: point[0])
        axes.plot([d for d, _ in line], [g.mean for _, g in line], "o-", ms=3, color=COLOURS[arm], label=SAID[arm])
        banded = [(dose, gain.low, gain.high) for dose, gain in line if gain.low is not None]
        if banded:
            places, low, high = zip(*banded, strict=True)
            axes.fill_between(places, low, high, color=COLOURS[arm], alpha=0.15, lw=0)
    if sweep.chosen is not None:
        axes.axvline(sweep.chosen, color="#dddddd", lw=4, zorder=0)
