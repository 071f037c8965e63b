"""What the callbacks of a run share: errors about their settings, the run's folder, figures and histograms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from lightsae.errors import ConfigError, section
from lightsae.training.module import SAEModule

# Loggers that give each run a folder of its own.
WITH_FOLDERS = (TensorBoardLogger, CSVLogger)


class SAECallback(Callback):
    """A callback of a run that trains SAEs.

    Attributes:
        module: What is trained; known from `setup` on, like the others.
        data: What serves it.
        folder: The run's folder.
    """

    module: SAEModule
    data: Any
    folder: Path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SAEModule), f"{type(self).__name__} watches an SAEModule"
        self.module, self.data, self.folder = pl_module, getattr(trainer, "datamodule", None), run_folder(trainer)

    def log_pooled(self, name: str, figures: Mapping[str, Tensor | float]) -> None:
        """Log validation figures of an SAE that are the same on all ranks already."""
        for key, value in figures.items():
            # `sync_dist` keeps Lightning from warning that they might not be the same.
            number = value.float() if isinstance(value, Tensor) else value
            self.module.log(self.module.tag(name, f"val/{key}"), number, sync_dist=True)

    def _refuse_if(self, wrong: bool, name: str, value: Any, advice: str) -> None:
        """Raise a ConfigError about a setting; in a configuration, the class stands for the setting's section."""
        if wrong:
            with section(type(self).__name__):
                raise ConfigError(name, value, advice)


def run_folder(trainer: Trainer) -> Path:
    """Return the run's folder, in which all of its files stand. Call it on every rank.

    It is that of the first logger with a folder for each run (TensorBoard, CSV); with others, or none, the root of the
    Trainer.
    """
    folder = next((logger.log_dir for logger in trainer.loggers if isinstance(logger, WITH_FOLDERS)), None)
    return Path(trainer.strategy.broadcast(folder or trainer.default_root_dir))


def log_once(trainer: Trainer, figures: Mapping[str, float]) -> None:
    """Write figures of the step that just ended to every logger.

    Not through `LightningModule.log`: Lightning would repeat the last value at each of its own logging steps.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(figures), trainer.global_step - 1)


def add_histogram(trainer: Trainer, tag: str, values: Tensor) -> None:
    """Write a histogram to every TensorBoard logger of the run; nothing where `values` is empty."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and len(values):
            logger.experiment.add_histogram(tag, values.float().cpu(), trainer.global_step)
