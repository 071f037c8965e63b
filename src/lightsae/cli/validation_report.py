"""What is printed and written when a run has ended: the figures, and where to look next."""

import json
from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.cli.runs import shown
from lightsae.formats.files import write_atomically

# The figures of the table, in its order; all of them are in TensorBoard and in validation.json.
_MEANINGS = {
    "val/fve": "fraction of variance explained",
    "val/fve_no_sinks": "the same without attention sinks",
    "val/l0": "latents that fire on a token",
    "val/dead_fraction": "latents that never fire",
    "val/dense_fraction": "latents firing on over 10% of tokens",
    "val/relative_reconstruction_bias": "1 is unbiased, below 1 shrunk",
    "val/ce_recovered": "of what zero ablation costs",
    "val/ce_recovered_mean": "of what mean ablation costs",
    "val/kl": "nats a token, spliced against clean",
    "val/tokens": "held-out tokens",
}


def report(trainer: Trainer, data: ActivationDataModule, command: str) -> None:
    """Print the validation figures; `validate` writes them to validation.json in its run folder, too."""
    # Asked for on every rank: Lightning broadcasts the answer.
    log_dir = trainer.log_dir
    folder = Path(log_dir) if log_dir else None
    figures = {key: float(value) for key, value in trainer.callback_metrics.items() if "val/" in key}
    if not trainer.is_global_zero:
        return
    if command == "validate" and folder is not None:
        document = {"figures": figures, "checkpoint": shown(trainer.ckpt_path or ""), "data": data.describe()}
        with write_atomically(folder / "validation.json") as partial:
            partial.write_text(json.dumps(document, indent=2) + "\n")
    console = Console()
    if figures:
        table = Table("validation", "", "", box=None, pad_edge=False)
        table.columns[0].no_wrap, table.columns[1].justify = True, "right"
        for dictionary in dict.fromkeys(key.partition("val/")[0] for key in figures):
            for name, meaning in _MEANINGS.items():
                if (value := figures.get(dictionary + name)) is not None:
                    figure = f"{value:,.0f}" if name == "val/tokens" else f"{value:.4g}"
                    table.add_row(dictionary + name, figure, f"[dim]{meaning}[/dim]")
        console.print(table)
    if folder is not None:
        _where_next(console, folder, command)


def _where_next(console: Console, folder: Path, command: str) -> None:
    run = shown(folder)
    rows = [("run folder", f"{run}/")]
    if command == "fit":
        rows += [
            ("dictionary", f'{run}/sae/   lightsae.load_sae("{run}/sae")'),
            ("curves", f"{run}/training_curves.png   tensorboard --logdir {shown(folder.parent)}"),
            ("go on", f"lightsae fit --config {run}/config.yaml --ckpt_path last"),
            ("measure", f"lightsae validate --config {run}/config.yaml --ckpt_path last"),
        ]
    else:
        rows.append(("figures", f"{run}/validation.json"))
    for name, text in rows:
        console.print(f"{name:<12}{text}", soft_wrap=True, highlight=False)
