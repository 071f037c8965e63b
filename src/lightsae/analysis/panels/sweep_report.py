"""What a sweep leaves behind: steer.json, texts.md, the figure, the same in TensorBoard and in the feature's page."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.dictionary.writer import add_extra
from lightsae.analysis.panels.curves import draw_sweep
from lightsae.analysis.panels.judged import RATINGS, Judged
from lightsae.analysis.panels.sweep import Measured, Sweep
from lightsae.formats.files import replace_folder_atomically, write_atomically
from lightsae.plotting import write_scalars

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
