"""Where a run's files go, and how a callback logs a figure that it does not have at every step."""

from collections.abc import Mapping
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor


def run_folder(trainer: Trainer) -> Path:
    """Return the run's folder: the logger's, or the Trainer's root where nothing logs. Call it on every rank."""
    return Path(trainer.log_dir or trainer.default_root_dir)


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
