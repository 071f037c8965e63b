"""`lightsae superpose`: the toy model of superposition, trained and drawn."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lightsae.cli.failures import explain_classes
from lightsae.cli.parser import Parser
from lightsae.cli.runs import shown
from lightsae.formats.files import replace_folder_atomically
from lightsae.toy.picture import draw
from lightsae.toy.superposition import Solution, Superposition, train

_DESCRIPTION = (
    "Train the toy model of superposition (Elhage et al. 2022) at several sparsities, and draw how features share too "
    "few dimensions: the sparser they are, the more of them fit."
)


def run_superpose(args: Sequence[str]) -> int:
    """Train, draw, write a folder, print a table."""
    parser = Parser(
        prog="lightsae superpose", usage="lightsae superpose [--config FILE.yaml] [OPTIONS]", description=_DESCRIPTION
    )
    parser.add_argument("-c", "--config", action="config", help="Settings from a YAML file; options win over it.")
    parser.add_class_arguments(Superposition)
    parser.add_argument("--out", type=str | None, help="Folder to write; null: lightning_logs/superposition_N.")
    given = parser.parse_args(list(args))
    with explain_classes({}):
        config = Superposition(**{name: given[name] for name in Superposition.__dataclass_fields__})
    folder = Path(given.out) if given.out else _next_folder(Path("lightning_logs"))
    with tqdm(total=config.steps, desc="steps", disable=not sys.stderr.isatty(), leave=False) as bar:
        solutions = train(config, lambda step: bar.update(step - bar.n) and None)
    _write(folder, config, solutions)
    console = Console()
    table = Table("sparsity", "loss", "features represented", box=None, pad_edge=False)
    for solution in solutions:
        table.add_row(f"{solution.sparsity:g}", f"{solution.loss:.4f}", f"{solution.represented} of {config.features}")
    console.print(table)
    console.print(f"picture  {shown(folder / 'superposition.png')}\nnumbers  {shown(folder / 'superposition.json')}")
    return 0


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
        "W": solution.W.tolist(),
        "b": solution.b.tolist(),
        "norms": solution.norms.tolist(),
        "interference": solution.interference.tolist(),
        "dimensions_per_feature": solution.W.shape[0] / max(float(solution.W.square().sum()), 1e-9),
    }


def _next_folder(root: Path) -> Path:
    number = 0
    while (root / f"superposition_{number}").exists():
        number += 1
    return root / f"superposition_{number}"
