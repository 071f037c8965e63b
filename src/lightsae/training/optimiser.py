"""How Adam steps: by gradients of one norm, at a rate of its own for each SAE."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning import Trainer
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Adam

from lightsae.sae import SparseAutoencoder
from lightsae.training.latent_parallel import mean_gradients, own_share
from lightsae.training.schedules import Schedule


def adam(saes: Mapping[str, SparseAutoencoder], rates: Mapping[str, float]) -> Adam:
    """Return Adam with a group of parameters per SAE, which has the SAE's name and peak learning rate."""
    groups: list[dict[str, Any]] = [
        {
            "params": list(sae.parameters()),
            "lr": rates[name],
            "betas": sae.mechanism.adam_betas,
            "eps": sae.mechanism.adam_eps,
            "name": name,
        }
        for name, sae in saes.items()
    ]
    return Adam(groups, fused=True)


def set_rates(trainer: Trainer, rates: Mapping[str, float], schedule: Schedule, total_steps: int) -> None:
    """Give a resumed run the rates of its length: Adam's stored ones are of the old length, and would hold for a step.

    With the same length they are the stored ones.
    """
    (scheduler,) = (config.scheduler for config in trainer.lr_scheduler_configs)
    groups = trainer.optimizers[0].param_groups
    scheduler.base_lrs = [rates[group["name"]] for group in groups]
    for group, rate in zip(groups, scheduler.base_lrs, strict=True):
        group["initial_lr"] = rate
        group["lr"] = rate * schedule.factor(scheduler.last_epoch, total_steps)


def prepare_gradients(sae: SparseAutoencoder, clip: float | None, algorithm: str | None) -> None:
    """Bring an SAE's gradients to norm 1, or clip them where the Trainer says so.

    Args:
        sae: One by itself: a global norm would couple the SAEs of a sweep.
        clip: The Trainer's `gradient_clip_val`.
        algorithm: Its `gradient_clip_algorithm`.
    """
    mean_gradients(sae)
    with torch.no_grad(), own_share(sae):
        sae.before_step()
    if not clip:
        normalise_gradients(sae.parameters())
    elif algorithm == "value":
        nn.utils.clip_grad_value_(sae.parameters(), clip)
    else:
        nn.utils.clip_grad_norm_(sae.parameters(), clip)


@torch.no_grad()
def normalise_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Scale each parameter's gradient in place to norm 1; a gradient of 0 stays.

    Adam divides by the root mean square of its last thousand gradients. Those of the first steps are many times as
    large as later ones, and would make the steps small until they are forgotten. Each parameter by itself, so that a
    penalty that moves thresholds alone does not change the steps of the weights.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            gradient, norm = parameter.grad, torch.linalg.vector_norm(parameter.grad)
            if isinstance(gradient, DTensor):
                norm = norm.full_tensor()
                gradient = gradient.to_local()
            gradient.div_(norm.clamp_min(torch.finfo(norm.dtype).tiny))
