"""Where a run's files go."""

from pathlib import Path

from lightning import Trainer


def run_folder(trainer: Trainer) -> Path:
    """Return the run's folder: the logger's, or the Trainer's root where nothing logs. Call it on every rank."""
    return Path(trainer.log_dir or trainer.default_root_dir)
