"""What is printed and written when a run has ended: the figures, and where to look next."""

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks.base import run_folder
from lightsae.cli.tables import console, table
from lightsae.compat import is_dry_run
from lightsae.formats.files import shown, write_json
from lightsae.formats.native import tensor_hash
from lightsae.training.module import SAEModule

# The figures of the table, in its order; all of them are in TensorBoard and in validation.json.
_MEANINGS = {
    "val/fve": "fraction of variance explained",
    "val/fve_no_sinks": "the same without attention sinks",
    "val/l0": "latents that fire on a token",
    "val/l0_in_training": "the same, chosen as in training",
    "val/dead_fraction": "latents that never fire",
    "val/dense_fraction": "latents firing on over 10% of tokens",
    "val/relative_reconstruction_bias": "1 is unbiased, below 1 shrunk",
    "val/ce_recovered": "of what zero ablation costs",
    "val/ce_recovered_mean": "of what mean ablation costs",
    "val/kl": "nats per token, spliced against clean",
    "val/share_shared": "of the living latents, shared by all sites",
    "val/truth/recovered": "true features found (cosine > 0.9)",
    "val/truth/mcc": "mean cosine with the matched features",
    "val/truth/f1": "latents as detectors of those features",
    "val/tokens": "held-out tokens",
}
# The columns of the table of several SAEs: heading, and how their figures are written.
_COLUMNS = {
    "fve": ("fve", ".4f"),
    "fve_no_sinks": ("fve\nno sinks", ".4f"),
    "l0": ("l0", ".1f"),
    "l0_in_training": ("l0 in\ntraining", ".1f"),
    "dead_fraction": ("dead", ".1%"),
    "ce_recovered": ("ce\nrecovered", ".4f"),
    "kl": ("kl", ".4f"),
    "truth/recovered": ("truth\nfound", ".3f"),
    "truth/mcc": ("truth\nmcc", ".3f"),
    "truth/f1": ("truth\nf1", ".3f"),
}


def report(trainer: Trainer, data: ActivationDataModule, command: str, options: str = "") -> None:
    """Print the validation figures; `validate` writes them to validation.json in its run folder, too.

    Args:
        trainer: Of the run that has ended.
        data: Its data.
        command: `fit` or `validate`.
        options: What has to be typed again to go on; see `to_type_again`.
    """
    folder, module = run_folder(trainer), trainer.lightning_module
    assert isinstance(module, SAEModule)
    figures = {key: float(value) for key, value in trainer.callback_metrics.items() if "val/" in key}
    saes = module.whole_saes() if command == "validate" else {}
    if not trainer.is_global_zero:
        return
    if command == "validate" and not is_dry_run(trainer):
        document = {
            "figures": figures,
            "checkpoint": shown(trainer.ckpt_path or ""),
            "data": data.describe(),
            # As sae.json has them: figures can be told apart from those of another step of the same run.
            "sha256": {name: tensor_hash(sae) for name, sae in saes.items()},
        }
        write_json(folder / "validation.json", document, finite=False, ascii_only=True)
    out = console()
    names = list(module.saes)
    if figures and len(names) > 1:
        by_name = {name: _own(figures, module.tag(name, "val/")) for name in names}
        out.print(_table_of_several(by_name))
        out.print(f"[dim]on {by_name[names[0]].get('tokens', 0):,.0f} held-out tokens[/dim]")
    elif figures:
        out.print(_table_of_one(figures))
    logs = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
    _where_next(out, folder, options, several=len(names) > 1, tensorboard=logs)


def _own(figures: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): value for key, value in figures.items() if key.startswith(prefix)}


def _table_of_one(figures: Mapping[str, float]) -> Table:
    """Return a row per figure, with what it means."""
    rows = table("validation", "", "", words=(0, 2))
    rows.columns[0].no_wrap = True
    for name, meaning in _MEANINGS.items():
        if (value := figures.get(name)) is not None:
            figure = f"{value:,.0f}" if name == "val/tokens" else f"{value:.4g}"
            rows.add_row(name, figure, f"[dim]{meaning}[/dim]")
    return rows


def _table_of_several(by_name: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a row per SAE; of the columns those that any of them has a figure for."""
    columns = {key: column for key, column in _COLUMNS.items() if any(key in figures for figures in by_name.values())}
    rows = table("validation", *(heading for heading, _ in columns.values()))
    rows.columns[0].overflow = "fold"
    for column in rows.columns[1:]:
        column.no_wrap = True
    for name, figures in by_name.items():
        cells = (format(figures[key], form) if key in figures else "" for key, (_, form) in columns.items())
        rows.add_row(name, *cells)
    return rows


def _where_next(out: Console, folder: Path, options: str, several: bool, tensorboard: bool) -> None:
    """Name what stands in the run's folder, and what can be done with it; nothing that is not there."""
    run, sae = shown(folder), "sae/NAME" if several else "sae"
    sweep = [name for name in ("sweep.json", "sweep.png", "layers.png") if (folder / name).is_file()]
    curves = [f"{run}/{name}" for name in ("training_curves.png", "metrics.csv") if (folder / name).is_file()]
    curves += [f"tensorboard --logdir {shown(folder.parent)}"] if tensorboard else []
    rows = []
    if folder.is_dir():
        rows.append(("run folder", f"{run}/"))
    if several and sweep:
        rows.append(("sweep", f"{run}/{', '.join(sweep)}"))
    if (folder / "sae").is_dir():
        rows.append(("SAEs" if several else "SAE", f'{run}/{sae}/   lightsae.load_sae("{run}/{sae}")'))
    if (folder / "validation.json").is_file():
        rows.append(("figures", f"{run}/validation.json"))
    if (folder / "checkpoints" / "last.ckpt").is_file():
        if curves:
            rows.append(("curves", "   ".join(curves)))
        if (folder / "config.yaml").is_file():
            again = f"--config {run}/config.yaml --ckpt_path last{options}"
            rows += [("go on", f"lightsae fit {again}"), ("measure", f"lightsae validate {again}")]
    for name, text in rows:
        out.print(f"{name:<14}{text}", soft_wrap=True, highlight=False)
