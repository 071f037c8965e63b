"""`lightsae superpose`: the toy model of superposition, trained and drawn."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lightsae.cli.settings.command import Bars, CommandParser
from lightsae.errors import ConfigError
from lightsae.formats.files import replace_folder_atomically, shown
from lightsae.toy.picture import draw
from lightsae.toy.superposition import Solution, Superposition, train

_DESCRIPTION = (
    "Train the toy model of superposition (Elhage et al. 2022) at several sparsities, and draw how features share too "
    "few dimensions: the sparser they are, the more of them fit.\n\n"
    "Writes a folder with the picture (superposition.png), the numbers (superposition.json), and the picture for "
    "TensorBoard."
)
_EXAMPLES = (
    "lightsae superpose --config configs/toy_superposition.yaml",
    "lightsae superpose --features 20 --dimensions 5 --sparsities '[0, 0.9, 0.99]'",
)
_RUNS = Path("lightning_logs")


def run_superpose(args: Sequence[str]) -> int:
    """Train, write a folder, print a table."""
    parser = CommandParser("superpose", "[--config FILE.yaml] [OPTIONS]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("-c", "--config", action="config", help="Settings from a YAML file; options win over it.")
    parser.add_argument(
        "--out", type=str | None, help="Folder to make, which may not exist yet; null: lightning_logs/superposition_N."
    )
    parser.add_class_arguments(Superposition)
    given = parser.parse_args(list(args))
    config = Superposition(**{setting.name: given[setting.name] for setting in fields(Superposition)})
    # Whatever a folder of that name holds would be replaced.
    if given.out is not None and (not given.out or os.path.lexists(given.out)):
        raise ConfigError(f"out is {given.out!r}, which {'exists' if given.out else 'is no name'}; name a new folder.")
    solutions = _train(config)
    folder = Path(given.out) if given.out else _next_folder()
    _write(folder, config, solutions)
    console = Console()
    console.print(_table(solutions))
    for what, name in (("picture", "superposition.png"), ("numbers", "superposition.json")):
        # As one line, however long: it is there to be copied.
        console.print(f"{what}  {shown(folder / name)}", soft_wrap=True, markup=False, highlight=False)
    return 0


def _train(config: Superposition) -> list[Solution]:
    with Bars(announce=False).stage(
        f"{len(config.sparsities)} models, {config.restarts} starts each", config.steps
    ) as done:
        return train(config, done)


def _table(solutions: Sequence[Solution]) -> Table:
    table = Table("sparsity", "loss", "features represented", "dimensions a feature", box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for solution in solutions:
        table.add_row(
            f"{solution.sparsity:g}",
            f"{solution.loss:.4f}",
            f"{solution.represented} of {len(solution.norms)}",
            f"{solution.dimensions_per_feature:.2f}",
        )
    return table


def _write(folder: Path, config: Superposition, solutions: Sequence[Solution]) -> None:
    figure = draw(solutions)
    with replace_folder_atomically(folder) as staged:
        figure.savefig(staged / "superposition.png", dpi=150)
        numbers = {"settings": asdict(config), "models": [_numbers(solution) for solution in solutions]}
        (staged / "superposition.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        with SummaryWriter(str(staged)) as writer:
            writer.add_figure("superposition", figure)


def _numbers(solution: Solution) -> dict[str, Any]:
    return {
        "sparsity": solution.sparsity,
        "loss": solution.loss,
        "represented": solution.represented,
        "dimensions_per_feature": solution.dimensions_per_feature,
        "norms": solution.norms.tolist(),
        "interference": solution.interference.tolist(),
        "W": solution.W.tolist(),
        "b": solution.b.tolist(),
    }


def _next_folder() -> Path:
    number = 0
    while (folder := _RUNS / f"superposition_{number}").exists():
        number += 1
    return folder
