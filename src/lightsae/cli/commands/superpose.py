"""`lightsae superpose`: the toy model of superposition, trained and drawn."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lightsae.cli.settings.command import Bars, command
from lightsae.cli.tables import console, print_paths, table
from lightsae.errors import ConfigError, arg
from lightsae.formats.files import replace_folder_atomically
from lightsae.toy.picture import draw
from lightsae.toy.superposition import Solution, Superposition, train

_EXAMPLES = (
    "lightsae superpose --config configs/toy_superposition.yaml",
    "lightsae superpose --features 20 --dimensions 5 --sparsities '[0, 0.9, 0.99]'",
)
_RUNS = Path("lightning_logs")
# What the numbers' file says of each model.
_NUMBERS = ("sparsity", "loss", "represented", "dimensions_per_feature", "norms", "interference", "W", "b")


@command("[--config FILE.yaml] [OPTIONS]", _EXAMPLES)
def run_superpose(settings: Superposition, out: str | None = None) -> None:
    """Train the toy model of superposition (Elhage et al. 2022) at several sparsities, and draw what it learned.

    Features share too few dimensions: the sparser they are, the more of them fit.

    Writes a folder with the picture (superposition.png), the numbers (superposition.json), and the picture for
    TensorBoard.

    Args:
        settings: The toy model.
        out: Folder to make, which may not exist yet; null: lightning_logs/superposition_N.
    """
    # Whatever a folder of that name holds would be replaced.
    if out is not None and (not out or os.path.lexists(out)):
        raise ConfigError(f"{arg('out')} is {out!r}, which {'exists' if out else 'is no name'}; name a new folder.")
    name = f"{len(settings.sparsities)} models, {settings.restarts} starts each"
    with Bars(announce=False).stage(name, settings.steps) as done:
        solutions = train(settings, done)
    folder = Path(out) if out else _next_folder()
    _write(folder, settings, solutions)
    rows = table("sparsity", "loss", "features represented", "dimensions per feature", words=())
    for one in solutions:
        represented = f"{one.represented} of {len(one.norms)}"
        rows.add_row(f"{one.sparsity:g}", f"{one.loss:.4f}", represented, f"{one.dimensions_per_feature:.2f}")
    console().print(rows)
    print_paths(("picture", folder / "superposition.png"), ("numbers", folder / "superposition.json"))


def _write(folder: Path, settings: Superposition, solutions: Sequence[Solution]) -> None:
    figure = draw(solutions)
    with replace_folder_atomically(folder) as staged:
        figure.savefig(staged / "superposition.png", dpi=150)
        models = [{name: _plain(getattr(solution, name)) for name in _NUMBERS} for solution in solutions]
        numbers = {"settings": asdict(settings), "models": models}
        (staged / "superposition.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        with SummaryWriter(str(staged)) as writer:
            writer.add_figure("superposition", figure)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _next_folder() -> Path:
    number = 0
    while (folder := _RUNS / f"superposition_{number}").exists():
        number += 1
    return folder
