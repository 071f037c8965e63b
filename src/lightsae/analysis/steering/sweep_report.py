"""What a sweep leaves behind: steer.json, texts.md, the figure, the same in TensorBoard and in the feature's page."""

import json
from collections.abc import Sequence
from pathlib import Path

from lightsae.analysis.artefact import FeatureDictionary
from lightsae.analysis.steering.arms import SAID
from lightsae.analysis.steering.curves import draw_sweep, write_scalars
from lightsae.analysis.steering.sweep import Sweep
from lightsae.formats.files import replace_folder_atomically, write_atomically

# Where a feature's page looks for the figure, in the folder of the feature dictionary.
PAGES = "steering"


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write a sweep's folder in one step; an earlier one is replaced when the new one is complete."""
    with replace_folder_atomically(folder) as staged:
        (staged / "steer.json").write_text(
            json.dumps(sweep.report(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (staged / "texts.md").write_text(_texts(sweep), encoding="utf-8")
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
    return path


def _texts(sweep: Sweep) -> str:
    lines = [f"# Feature {sweep.concept.feature}: {sweep.concept.label or 'unlabelled'}", ""]
    for number, prompt in enumerate(sweep.prompts):
        lines += [f"## {_quoted(prompt)}", ""]
        for one in sweep.measured:
            dose = f", dose {one.dose:g}" if one.dose else ""
            lines += [f"- {SAID[one.arm]}{dose}: {_quoted(text)}" for text in one.samples.texts[number]]
        lines.append("")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return f"`{json.dumps(text, ensure_ascii=False).replace('`', chr(39))}`"


def side_by_side(prompt: str, sides: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return lines for a terminal: each sample of each side, after its prompt, indented."""
    lines = [f"prompt  {prompt!r}"]
    for number in range(max(len(texts) for _, texts in sides)):
        for name, texts in sides:
            shown = (prompt + texts[number]).replace("\n", "\n    ")
            lines += [f"  {name}, sample {number + 1}", f"    {shown}"]
    return lines
