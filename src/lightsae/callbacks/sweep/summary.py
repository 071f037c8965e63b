"""The end of a run with several SAEs: all their settings and figures in one file, and in two pictures."""

import json
import math
from dataclasses import asdict
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure

from lightsae.callbacks.base import SAECallback
from lightsae.callbacks.sweep.entries import SweepEntry
from lightsae.callbacks.sweep.pictures import draw_layers, draw_pareto
from lightsae.compat import writes_files
from lightsae.formats.files import write_atomically
from lightsae.formats.native import plain
from lightsae.plotting import write_picture
from lightsae.training.module import SAEModule


class SweepSummary(SAECallback):
    """Sum up a run with several SAEs, at the end of training and of `validate`. Observes only.

    RUN/sweep.json: per SAE its variant, settings, sites, loss coefficients, learning rate, tokens, and the final
    validation figures. RUN/sweep.png: FVE and CE recovered against L0. RUN/layers.png, where the SAEs differ in
    site: FVE, L0 and dead latents by layer. TensorBoard gets the pictures too. A run with one SAE gets nothing.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if len(self.module.saes) < 2 or not writes_files(trainer):
            return
        entries = summarise(self.module, {key: float(value) for key, value in trainer.callback_metrics.items()})
        with write_atomically(self.folder / "sweep.json") as path:
            document = {"dictionaries": [to_json(entry) for entry in entries]}
            path.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")
        pictures: dict[str, Figure | None] = {"sweep": draw_pareto(entries), "layers": draw_layers(entries)}
        for name, figure in pictures.items():
            if figure is not None:
                write_picture(trainer, self.folder / f"{name}.png", f"pictures/{name}", figure)


def summarise(module: SAEModule, figures: dict[str, float]) -> list[SweepEntry]:
    """Return what a sweep came to.

    Args:
        module: With its SAEs built.
        figures: Logged figures under their full names; those of validation are taken.
    """
    entries = []
    for name, sae in module.each_sae().items():
        prefix = module.tag(name, "val/")
        own = {key.removeprefix(prefix): value for key, value in figures.items() if key.startswith(prefix)}
        entries.append(
            SweepEntry(
                name=name,
                variant=type(sae).__name__,
                settings=plain(sae.settings),
                read=list(sae.widths.read),
                predicted=list(sae.widths.predicted),
                coefficients={term: asdict(schedule) for term, schedule in module.coefficients[name].items()},
                lr=module.learning_rate(name),
                tokens=module.tokens_seen,
                figures={key: value if math.isfinite(value) else None for key, value in own.items()},
            )
        )
    return entries


def to_json(entry: SweepEntry) -> dict[str, Any]:
    """Return an entry as JSON values; sites as `model:site`."""
    return asdict(entry) | {
        "read": [str(site) for site in entry.read],
        "predicted": [str(site) for site in entry.predicted],
    }
