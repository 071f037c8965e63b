"""Whether a checkpoint is one that this run can go on from. Everything is looked at before anything is loaded.

Damage of the file shows in its check sums. What is found here was written like this: by another run, another program,
or by hand.
"""

import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Adam

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.compat import batches_trained, data_ranks, fit_progress, forget_loaders, steps_trained
from lightsae.errors import CheckpointError
from lightsae.formats.checkpoint import present_names
from lightsae.formats.native import plain
from lightsae.sae import LatentUsage, SparseAutoencoder
from lightsae.stored import misfit

# Of Adam's settings these are the run's own, and go on as they were stored; all others are Adam's defaults.
_OWN_SETTINGS = {"lr": 0.0, "initial_lr": 0.0, "betas": (0.0, 0.0), "eps": 0.0}
_SCHEDULE = ("base_lrs", "last_epoch", "_step_count", "_last_lr", "lr_lambdas")


def check_checkpoint(
    checkpoint: Mapping[str, Any], saes: Mapping[str, SparseAutoencoder], name: str = "the checkpoint"
) -> None:
    """Check that a checkpoint is lightsae's, and holds weights of these SAEs.

    Args:
        checkpoint: As it was read, on the CPU.
        saes: The SAEs of the run, also without storage.
        name: What the checkpoint is called in a message.

    Raises:
        CheckpointError: It is not, or does not.
    """
    stored = checkpoint.get("lightsae")
    if stored is None:
        raise CheckpointError(f"--ckpt_path: {name} was not written by lightsae fit.")
    configured = {key: describe(sae) for key, sae in saes.items()}
    _refuse(name, misfit(stored, {"tokens_seen": 0, "dictionaries": {}}, "lightsae"))
    if difference := first_difference(stored["dictionaries"], configured):
        raise CheckpointError(f"--ckpt_path: {name} does not fit the configuration: {difference}.")
    expected: dict[str, Any] = {}
    for key, sae in saes.items():
        usage = LatentUsage(sae.d_sae, dead_after=1)
        expected |= {f"saes.{key}.{part}": tensor for part, tensor in sae.state_dict().items()}
        expected |= {f"usage.{key}.{part}": state for part, state in usage.state_dict().items()}
    _refuse(name, misfit(checkpoint, {"state_dict": {}}))
    weights = present_names(checkpoint["state_dict"])
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    for key, sae in saes.items():
        sae.mechanism.upgrade(tensors, f"saes.{key}.mechanism.")
    weights |= tensors
    _refuse(name, misfit(weights, expected, "state_dict"))
    for key in weights:
        _refuse(name, f"state_dict.{key} belongs to no SAE" if key not in expected else None)
        if key.endswith("_extra_state") and weights[key]["steps_to_refresh"] < 1:
            raise _unusable(name, f"state_dict.{key} has no step to refresh at")


def check_resumable(
    checkpoint: Mapping[str, Any],
    saes: Mapping[str, SparseAutoencoder],
    trainer: Trainer,
    data: Any,
    name: str = "the checkpoint",
) -> None:
    """Check that a fit can go on from a checkpoint: weights, optimiser, schedule, progress and place in the data.

    Args:
        checkpoint: As it was read, on the CPU.
        saes: The SAEs of the run, also without storage.
        trainer: Of the run; nothing of it has been trained.
        data: Its data module; of an `ActivationDataModule` the place is checked, others are trusted.
        name: What the checkpoint is called in a message.

    Raises:
        CheckpointError: It cannot; the message says at what.
    """
    check_checkpoint(checkpoint, saes, name)
    _refuse(name, misfit(checkpoint, {"loops": {"fit_loop": {}}}))
    progress = checkpoint["loops"]["fit_loop"]
    _refuse(name, misfit(progress, fit_progress(trainer), "loops.fit_loop"))
    steps = steps_trained(progress)
    _check_optimiser(checkpoint, saes, steps, name)
    _check_schedule(checkpoint, len(saes), steps, name)
    _check_callbacks(checkpoint, trainer, name)
    _refuse(name, misfit(checkpoint, {"lightsae": {"total_steps": 0}}, partial=True))
    precision = trainer.precision_plugin
    if scaler := precision.state_dict():
        key = type(precision).__qualname__
        _refuse(name, misfit(checkpoint, {key: scaler}, partial=True))
    if isinstance(data, ActivationDataModule):
        place = checkpoint.get(type(data).__qualname__)
        if place is None:
            raise _unusable(name, "it does not say where in the data the run stopped")
        data.check_place(place, data_ranks(trainer)[1])
        if (served := place["served_batches"]) != (trained := batches_trained(progress)):
            raise _unusable(name, f"it stopped after batch {served} of the data, but has trained on {trained}")


def _check_optimiser(
    checkpoint: Mapping[str, Any], saes: Mapping[str, SparseAutoencoder], steps: int, name: str
) -> None:
    parameters = {key: list(sae.parameters()) for key, sae in saes.items()}
    groups, numbers = [], iter(range(sum(map(len, parameters.values()))))
    for key, own in parameters.items():
        groups.append({"name": key, "params": [next(numbers) for _ in own], **_OWN_SETTINGS, "weight_decay": None})
    _refuse(name, misfit(checkpoint, {"optimizer_states": [{"state": {}, "param_groups": groups}]}))
    stored = checkpoint["optimizer_states"][0]
    defaults = {key: value for key, value in Adam([torch.zeros(1)]).defaults.items() if key not in _OWN_SETTINGS}
    for found, group in zip(stored["param_groups"], groups, strict=True):
        where = f"optimizer_states.0, group {group['name']!r}"
        for key in ("name", "params"):
            if found[key] != group[key]:
                raise _unusable(name, f"{where} has {key} {found[key]!r}, where {group[key]!r} should be")
        for key, value in defaults.items():
            # `fused` chooses an implementation, by which nothing is lost.
            if key in found and key != "fused" and _differs(found[key], value):
                raise _unusable(name, f"{where} has {key} {_shown(found[key])}, where {value!r} should be")
        if not (found["initial_lr"] > 0 and all(0 <= beta < 1 for beta in found["betas"]) and found["eps"] > 0):
            raise _unusable(name, f"{where} has settings that Adam cannot use")
    expected = {}
    if steps > 0:
        every = [parameter for own in parameters.values() for parameter in own]
        expected = {number: _state_of(parameter) for number, parameter in enumerate(every) if parameter.requires_grad}
    _refuse(name, misfit(stored["state"], expected, "optimizer_states.0.state"))
    for number, state in stored["state"].items():
        where = f"optimizer_states.0.state.{number}"
        if number not in expected:
            raise _unusable(name, f"{where} belongs to no parameter")
        if not 0 <= float(state["step"]) <= steps or bool((state["exp_avg_sq"] < 0).any()):
            raise _unusable(name, f"{where} cannot come from {steps} steps of Adam")


def _state_of(parameter: nn.Parameter) -> dict[str, Tensor]:
    return {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}


def _check_schedule(checkpoint: Mapping[str, Any], groups: int, steps: int, name: str) -> None:
    rates = [0.0] * groups
    state = {"base_lrs": rates, "last_epoch": 0, "_step_count": 0, "_last_lr": rates, "lr_lambdas": [None] * groups}
    _refuse(name, misfit(checkpoint, {"lr_schedulers": [state]}))
    stored = checkpoint["lr_schedulers"][0]
    if stored["last_epoch"] != steps:
        raise _unusable(name, f"its schedule is at step {stored['last_epoch']}, and its optimiser at step {steps}")
    if any(entry is not None for entry in stored["lr_lambdas"]):
        raise _unusable(name, "lr_schedulers.0.lr_lambdas holds values")


def _check_callbacks(checkpoint: Mapping[str, Any], trainer: Trainer, name: str) -> None:
    """Check what belongs to Lightning's own checkpoints; other callbacks know for themselves what they stored."""
    known = {callback.state_key: callback for callback in trainer.callbacks}  # type: ignore[attr-defined]
    _refuse(name, misfit(checkpoint, {"callbacks": {key: {} for key in known}}, partial=True))
    for key, state in checkpoint.get("callbacks", {}).items():
        if isinstance(known.get(key), ModelCheckpoint):
            fresh = {field: value for field, value in known[key].state_dict().items() if not isinstance(value, Tensor)}
            _refuse(name, misfit(state, fresh, f"callbacks.{key}"))


def leave_out(checkpoint: dict[str, Any], data: Any) -> None:
    """Leave out of a checkpoint, in place, what is not to be loaded."""
    if isinstance(data, ActivationDataModule):
        forget_loaders(checkpoint["loops"]["fit_loop"])
    # A schedule would take over attributes of any name.
    checkpoint["lr_schedulers"] = [{key: state[key] for key in _SCHEDULE} for state in checkpoint["lr_schedulers"]]


def describe(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return what has to agree between a checkpoint and a configuration, as plain values."""
    return {
        "variant": type(sae).__name__,
        "d_in": sae.d_in,
        "d_out": sae.d_out,
        **plain(sae.settings),
        "read": [str(site) for site in sae.widths.read],
        "predicted": [str(site) for site in sae.widths.predicted],
    }


def first_difference(stored: Mapping[str, Any], configured: Mapping[str, Any], where: str = "") -> str | None:
    """Return the first disagreement of two nested descriptions in words, or None."""
    for key in {**stored, **configured}:
        a, b = stored.get(key), configured.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := first_difference(a, b, f"{where}{key}."):
                return inner
        elif _differs(a, b):
            return f"{where}{key} is {_shown(a)} in the checkpoint and {_shown(b)} in the configuration"
    return None


def _differs(a: Any, b: Any) -> bool:
    # Tensors compare by entries.
    return isinstance(a, Tensor) or bool(a != b)


def _shown(value: Any) -> str:
    return textwrap.shorten(repr(value), 120, placeholder=" ...")


def _refuse(name: str, difference: str | None) -> None:
    if difference is not None:
        raise _unusable(name, difference)


def _unusable(name: str, reason: str) -> CheckpointError:
    return CheckpointError(f"--ckpt_path: {name} cannot be used: {reason}. Use an earlier one.")
