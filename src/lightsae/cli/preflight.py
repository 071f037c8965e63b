"""Checks before any folder is made: model, site, data, dictionary, checkpoint, space.

Everything here is cheap: no weights of the language model, no text, a dictionary without storage.
"""

import os
import shutil
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.errors import CheckpointError, ConfigError
from lightsae.training.checkpoint_io import AtomicCheckpointIO
from lightsae.training.module import SAEModule, describe, first_difference, merge_coefficients

# Weights, two Adam moments; a checkpoint and its successor side by side, and two exports.
_COPIES_ON_DISK = 3 * 2 + 2


def preflight(trainer: Trainer, module: SAEModule, data: ActivationDataModule, ckpt_path: str | None) -> None:
    """Raise what the run would raise later, before it has made anything."""
    data.preflight()
    with torch.device("meta"):
        sae = module.make_sae(data.widths)
    merge_coefficients(sae, module.given_coefficients)
    if ckpt_path is not None:
        checkpoint = AtomicCheckpointIO().load_checkpoint(ckpt_path, map_location="meta")
        stored = checkpoint.get("lightsae")
        if stored is None:
            raise CheckpointError(f"--ckpt_path: {ckpt_path} was not written by lightsae fit.")
        if difference := first_difference(stored["dictionaries"], {"sae": describe(sae)}):
            raise CheckpointError(f"--ckpt_path: {ckpt_path} does not fit the configuration: {difference}.")
    if not trainer.fast_dev_run:
        size = sum(p.numel() * p.element_size() for p in sae.parameters())
        _check_folder(Path(trainer.log_dir or trainer.default_root_dir), _COPIES_ON_DISK * size)


def _check_folder(folder: Path, needed: int) -> None:
    """Raise where the folder, or the nearest that exists above it, cannot take `needed` bytes."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"trainer.default_root_dir: {existing} is a file; write a folder for the runs.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"trainer.default_root_dir: no permission to write in {existing}.")
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(
            f"trainer.default_root_dir: {existing} has {free / 1e9:.1f} GB free; checkpoints and exports of this "
            f"dictionary need {needed / 1e9:.1f} GB."
        )
