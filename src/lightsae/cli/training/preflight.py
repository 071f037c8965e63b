"""Checks before any folder is made: settings against each other, model, site, data, SAEs, checkpoint, space.

Everything here is cheap: no weights of the language model, no text, SAEs without storage.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import (
    AcceleratorRegistry,
    CPUAccelerator,
    CUDAAccelerator,
    MPSAccelerator,
    XLAAccelerator,
)

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks.base import run_folder
from lightsae.compat import is_dry_run
from lightsae.errors import ConfigError, did_you_mean
from lightsae.formats.checkpoint import read_checkpoint
from lightsae.sae import VARIANTS, SparseAutoencoder
from lightsae.sae.variants import trained
from lightsae.tracking import is_installed
from lightsae.training.checkpoint_check import check_checkpoint, check_resumable
from lightsae.training.latent_parallel import check_run
from lightsae.training.module import SAEModule

_ACCELERATORS = {"cpu": CPUAccelerator, "cuda": CUDAAccelerator, "mps": MPSAccelerator, "tpu": XLAAccelerator}
_PRECISIONS = ("32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed")
# The package behind each logger that is not lightsae's or Lightning's own, and what installs it.
_LOGGERS = {
    "ClearMLLogger": ("clearml", "'lightsae[clearml]'"),
    "WandbLogger": ("wandb", "wandb"),
    "MLFlowLogger": ("mlflow", "mlflow"),
    "CometLogger": ("comet_ml", "comet-ml"),
    "NeptuneLogger": ("neptune", "neptune"),
}
# Weights, two Adam moments; a checkpoint and its successor side by side, and two exports.
_COPIES_ON_DISK = 3 * 2 + 2
# TensorBoard's events, pictures, configuration.
_BESIDES = 1 << 20


def check_settings(command: str, config: Any) -> None:
    """Raise where settings contradict each other, or ask for hardware that is not there.

    Args:
        command: `fit`, `validate` or `estimate`.
        config: The settings, parsed, nothing made of them yet.
    """
    data, trainer = config.data, config.trainer
    if config.model.sae is None and not config.model.saes:
        raise ConfigError(
            f"model.sae is missing: choose a variant ({', '.join(trained(VARIANTS))}), "
            "for example --model.sae TopK --model.sae.d_sae 4096 --model.sae.k 32."
        )
    if data.activations is not None:
        for key in ("site", "dataset"):
            if data[key] is not None:
                raise ConfigError(
                    f"data.activations is {data.activations!r} and data.{key} is {data[key]!r}; give one: activation "
                    f"files, or a language model with text. (--data.{key} null takes it back.)"
                )
    for key in ("val_check_interval", "accumulate_grad_batches"):
        if isinstance(trainer[key], int) and trainer[key] < 1:
            raise ConfigError(f"trainer.{key} is {trainer[key]}; write 1 or more.")
    if str(trainer.precision or 32) not in _PRECISIONS:
        raise ConfigError(
            f"trainer.precision is {str(trainer.precision)!r}, but the SAE's weights stay float32; "
            f"write 32-true or bf16-mixed."
        )
    endless = trainer.max_steps < 1 and data.training_tokens is None and trainer.max_epochs is None
    if command != "validate" and endless and not trainer.fast_dev_run and not config.get("tokens"):
        raise ConfigError("The length of the run is missing; give trainer.max_steps or data.training_tokens.")
    _check_loggers(trainer.logger if isinstance(trainer.logger, list) else [trainer.logger])
    # What is to be estimated may be elsewhere.
    if isinstance(trainer.accelerator, str) and command != "estimate":
        _check_accelerator(trainer.accelerator)


def _check_loggers(loggers: Sequence[Any]) -> None:
    """Raise where the package that a logger writes to is missing; jsonargparse would list all that it tried."""
    for logger in loggers:
        kind = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        package, install = _LOGGERS.get(kind, ("lightsae", ""))
        if not is_installed(package):
            raise ConfigError(f"trainer.logger: {kind} needs the package {package}; install it: pip install {install}.")


def _check_accelerator(name: str) -> None:
    there = {kind: accelerator.is_available() for kind, accelerator in _ACCELERATORS.items()}
    there |= {"auto": True, "gpu": there["cuda"] or there["mps"]}
    if there.get(name, name in AcceleratorRegistry):
        return
    known = sorted({*there, *AcceleratorRegistry})
    if name not in known:
        raise ConfigError(
            f"trainer.accelerator is {name!r}; write {', '.join(known[:-1])} or {known[-1]}.{did_you_mean(name, known)}"
        )
    why = ""
    if name in ("gpu", "cuda"):
        why = " that PyTorch can use" if torch.version.cuda else ": this PyTorch was built without CUDA"
    device = {"gpu": "GPU", "cuda": "CUDA device"}.get(name, name)
    raise ConfigError(f"trainer.accelerator is {name!r}, but there is no {device} here{why}; write cpu or auto.")


def preflight(
    command: str, trainer: Trainer, module: SAEModule, data: ActivationDataModule, ckpt_path: str | None
) -> tuple[dict[str, SparseAutoencoder], dict[str, Any]]:
    """Raise what the run would raise later, before it has made anything.

    Args:
        command: `fit` or `validate`.
        trainer: Made from the settings, not started.
        module: The same.
        data: The same.
        ckpt_path: The checkpoint to go on from, or to measure.

    Returns:
        Its SAEs, without storage; and what the checkpoint says of the data, which is nothing without a checkpoint.
    """
    data.preflight()
    with torch.device("meta"):
        saes = module.build(data)
    check_run(trainer, saes, data, module.coefficients)
    checkpoint: dict[str, Any] = {}
    if ckpt_path is not None:
        checkpoint = read_checkpoint(ckpt_path, mmap=True)
        if command == "fit":
            check_resumable(checkpoint, saes, trainer, data, ckpt_path)
        else:
            check_checkpoint(checkpoint, saes, ckpt_path)
    if not is_dry_run(trainer):
        size = sum(p.numel() * p.element_size() for sae in saes.values() for p in sae.parameters())
        _check_folder(run_folder(trainer), _COPIES_ON_DISK * size + _BESIDES)
    return saes, checkpoint.get(type(data).__qualname__, {})


def _check_folder(folder: Path, needed: int) -> None:
    """Raise where the folder, or the nearest that exists above it, cannot take `needed` bytes."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"trainer.default_root_dir: {existing} is a file; write a folder for the runs.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"trainer.default_root_dir: no permission to write in {existing}; write another folder.")
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(
            f"trainer.default_root_dir: {existing} has {free / 1e6:,.1f} MB free, and the checkpoints and exports of "
            f"this run need {needed / 1e6:,.1f} MB; free some, or write another folder."
        )
