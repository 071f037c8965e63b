"""Writes the SAEs of a run as folders that `lightsae.load_sae` reads."""

from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from lightsae.activations.timings import Timings
from lightsae.callbacks.base import SAECallback
from lightsae.compat import writes_files
from lightsae.formats.files import replace_folder_atomically
from lightsae.formats.native import write_sae
from lightsae.training.module import SAEModule
from lightsae.version import version


class ExportSAE(SAECallback):
    """Export to RUN/sae with every checkpoint and at the end of the run. Observes only.

    RUN/sae is replaced as a whole, so that a kill leaves one export or the next; a run with several SAEs has
    them in RUN/sae/NAME, all of the same step. The export of a checkpoint is complete before the checkpoint is written.

    Args:
        checkpoints: Further exports, in RUN/sae_checkpoints/tokens_N: this many, at equal distances over the run, the
            last one at its end.

    Attributes:
        timings: Seconds spent writing, under "saving".

    Example:
        trainer: {callbacks: [{class_path: ExportSAE, init_args: {checkpoints: 10}}]}
    """

    def __init__(self, checkpoints: int = 0) -> None:
        super().__init__()
        self._refuse_if(checkpoints < 0, "checkpoints", checkpoints, "write 0 or more")
        self.checkpoints = checkpoints
        self.timings = Timings()
        self._exported_step: int | None = None
        self._extra_steps: set[int] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exported_step = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._extra_steps = spread(self.checkpoints, self.module.total_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step in self._extra_steps:
            # With accumulation, several batches end at the same step.
            self._extra_steps.remove(step)
            folder = self.folder / "sae_checkpoints" / f"tokens_{self.module.tokens_seen:012d}"
            self._write(trainer, folder)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._export(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._export(trainer)

    def _export(self, trainer: Trainer) -> None:
        # One step is often saved under two names, and again at the end.
        if self._exported_step != trainer.global_step:
            self._write(trainer, self.folder / "sae")
            self._exported_step = trainer.global_step

    def _write(self, trainer: Trainer, folder: Path) -> None:
        saes = self.module.whole_saes()
        if not writes_files(trainer):
            return
        where = provenance(trainer, self.module, self.folder)
        with self.timings.measure("saving"), replace_folder_atomically(folder) as staged:
            if len(saes) == 1:
                write_sae(next(iter(saes.values())), staged, where)
                return
            for name, sae in saes.items():
                (staged / name).mkdir()
                write_sae(sae, staged / name, where | {"dictionary": name})


def provenance(trainer: Trainer, pl_module: SAEModule, folder: Path) -> dict[str, Any]:
    """Return where the weights of this moment come from, as JSON values. Paths are as the user wrote them; no times.

    Args:
        trainer: Its datamodule tells model, site, corpus, preparation and seed.
        pl_module: Tells the tokens seen, over all ranks.
        folder: The run's folder; the text of its config.yaml goes under "config", where there is one.
    """
    data: Any = getattr(trainer, "datamodule", None)
    config = folder / "config.yaml"
    libraries = {name: installed(name) for name in ("torch", "lightning", "transformers")}
    return {
        **(data.describe() if data is not None else {}),
        "tokens_seen": pl_module.tokens_seen,
        "step": trainer.global_step,
        "config": config.read_text(encoding="utf-8") if config.is_file() else None,
        "versions": {"lightsae": version(), **libraries},
    }


def spread(exports: int, total_steps: int) -> set[int]:
    """Return the steps after which to export: multiples of total / exports, rounded; never step 0."""
    return {round(i * total_steps / exports) for i in range(1, exports + 1)} - {0}
