"""What a sweep leaves behind: steer.json, texts.md, and effect and cost against dose as a figure.

The figure stands in TensorBoard and on the feature's page too.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.dictionary.writer import add_extra
from lightsae.analysis.labels.wording import shortened
from lightsae.analysis.panels.arms import NONE
from lightsae.analysis.panels.judged import RATINGS, Judged
from lightsae.analysis.panels.measures import Measure
from lightsae.analysis.panels.sweep import Measured, Sweep
from lightsae.analysis.steering.interventions import UNITS
from lightsae.formats.files import replace_folder_atomically, write_atomically
from lightsae.plotting import STYLE, add_legend, write_scalars

_PANES = (Measure.CONCEPT, Measure.FIRES, Measure.TARGET, Measure.FOLLOWS, Measure.PPL_UNTOUCHED, Measure.KL)
# Where a feature's page looks for the figure, in the folder of the feature dictionary.
PAGES = "steering"


def write_sweep(folder: Path, sweep: Sweep, judged: Judged | None = None) -> None:
    """Write a sweep's folder in one step; an earlier one is replaced when the new one is complete.

    Args:
        folder: Where.
        sweep: What was measured.
        judged: What a judge said of the arms at the dose that was taken.
    """
    report = sweep.report() if judged is None else {**sweep.report(), "judged": judged.report()}
    with replace_folder_atomically(folder) as staged:
        (staged / "steer.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (staged / "texts.md").write_text(_texts(sweep, judged), encoding="utf-8")
        figure = draw_sweep(sweep)
        figure.savefig(staged / "steer.png", dpi=160)
        name = f"steering/feature_{sweep.concept.feature}"
        write_scalars(staged / "tensorboard", {}, {name: figure})


def show_on_page(dictionary: FeatureDictionary, sweep: Sweep) -> Path:
    """Write the figure to where the feature's page shows it, and return the file."""
    path = dictionary.folder / PAGES / f"{sweep.concept.feature}.png"
    path.parent.mkdir(exist_ok=True)
    with write_atomically(path) as staged:
        draw_sweep(sweep).savefig(staged, dpi=110, format="png")
    add_extra(dictionary.folder, PAGES)
    return path


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
        add_legend(panes.flat[0], fontsize=7)
        chosen = "no dose within the cost limit" if sweep.chosen is None else f"chosen dose {sweep.chosen:g}"
        label = shortened(sweep.concept.label or "unlabelled", 90)
        figure.suptitle(f"feature {sweep.concept.feature}: {label}  ({chosen})", x=0.01, ha="left", fontsize=10)
    return figure


def _pane(axes: Axes, sweep: Sweep, measure: Measure) -> None:
    for arm in dict.fromkeys(one.arm for one in sweep.measured):
        doses = sorted(one.dose for one in sweep.measured if one.arm == arm)
        gains = [(dose, gain) for dose in doses if (gain := sweep.shift(arm, measure, dose)) is not None]
        if arm.line:
            for _, gain in gains:
                axes.axhline(gain.mean, color=arm.colour, ls=arm.line, lw=1, label=arm.words)
            continue
        nothing = sweep.shift(NONE, measure)
        assert nothing is not None
        line = sorted([(0.0, nothing), *gains], key=lambda point: point[0])
        axes.plot([d for d, _ in line], [g.mean for _, g in line], "o-", ms=3, color=arm.colour, label=arm.words)
        banded = [(dose, gain.low, gain.high) for dose, gain in line if gain.low is not None]
        if banded:
            places, low, high = zip(*banded, strict=True)
            axes.fill_between(places, low, high, color=arm.colour, alpha=0.15, lw=0)
    if sweep.chosen is not None:
        axes.axvline(sweep.chosen, color="#dddddd", lw=4, zorder=0)


def _texts(sweep: Sweep, judged: Judged | None) -> str:
    lines = [f"# Feature {sweep.concept.feature}: {sweep.concept.label or 'unlabelled'}", ""]
    for number, prompt in enumerate(sweep.prompts):
        lines += [f"## {_quoted(prompt)}", ""]
        for one in sweep.measured:
            dose = f", dose {one.dose:g}" if one.dose else ""
            for sample, text in enumerate(one.samples.texts[number]):
                grades = _grades(sweep, judged, one, number, sample)
                lines.append(f"- {one.arm.words}{dose}: {_quoted(text)}{grades}")
        lines.append("")
    return "\n".join(lines)


def _grades(sweep: Sweep, judged: Judged | None, one: Measured, number: int, sample: int) -> str:
    """Return what the judge said of a text; nothing at doses that it was not asked about."""
    if judged is None or one.arm not in judged.arms or sweep.at(one.arm) is not one:
        return ""
    grades = {name: judged.arms[one.arm].grades[name][number, sample] for name in RATINGS}
    words = (f"{name} {'unrated' if math.isnan(grade) else format(grade, '.3g')}" for name, grade in grades.items())
    return f" ({', '.join(words)})"


def _quoted(text: str) -> str:
    return f"`{json.dumps(text, ensure_ascii=False).replace('`', chr(39))}`"


def side_by_side(prompt: str, sides: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return lines for a terminal: each sample of each side, after its prompt, indented."""
    lines = [f"prompt  {prompt!r}"]
    for number in range(max(len(texts) for _, texts in sides)):
        for name, texts in sides:
            indented = (prompt + texts[number]).replace("\n", "\n    ")
            lines += [f"  {name}, sample {number + 1}", f"    {indented}"]
    return lines
