"""What a run takes: seconds by part, tokens per second, memory, cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from lightsae.activations.settings import DataSettings
from lightsae.estimate.counts import COPIES_IN_TRAINING, LanguageModelCosts, SAECosts, sae_costs, splicing_flops
from lightsae.estimate.machine import Machine
from lightsae.estimate.plan import RunPlan
from lightsae.estimate.probe import Seconds
from lightsae.sae.mechanisms import TopK

_FLOAT = 4
# Tensors of a number per token and latent that a step holds at once: those of a mechanism that selects, and of others.
_SELECTED_COPIES, _DENSE_COPIES = 2, 5
# And those of a number per token and dimension.
_INPUT_COPIES = 6
# Passes over weights, gradients and moments in a step: gradients made, normalised and cleared, and Adam itself.
_PASSES_OF_A_STEP = 14
# A checkpoint holds weights and Adam's two moments; an export the weights.
_COPIES_SAVED = 4


@dataclass(frozen=True)
class Forecast:
    """What a run takes.

    Attributes:
        tokens: Training tokens over all devices.
        steps: Optimiser steps.
        devices: How many.
        sae_parameters: Of all SAEs.
        model_parameters: Of the language models, as far as they are loaded.
        flops_per_token: By part: `language_model`, `sae_dense`, `sae_sparse`.
        seconds: By part: `language_model` (or `data`), `sae_steps`, `validation`, `saving`,
            `start_and_end`.
        memory: Bytes on one device by part; `peak` is the most of all at once.
        cost: In the unit of the price per hour; None if no price was given.
    """

    tokens: int
    steps: int
    devices: int
    sae_parameters: int
    model_parameters: int
    flops_per_token: Mapping[str, int]
    seconds: Mapping[str, float]
    memory: Mapping[str, int]
    cost: float | None = None

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        """Training tokens per second over all devices, validation and saving included."""
        return self.tokens / self.total_seconds

    def as_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        more = {"total_seconds": self.total_seconds, "tokens_per_second": self.tokens_per_second}
        return asdict(self) | more


def forecast(
    plan: RunPlan,
    model: LanguageModelCosts,
    seconds: Seconds,
    *,
    device: torch.device,
    dtype: torch.dtype,
    price_per_hour: float | None = None,
) -> Forecast:
    """Put counts and measured seconds together.

    All devices work at once, each as fast as one alone: what they tell each other is not counted.

    Args:
        plan: Of the run.
        model: Costs of its language models.
        seconds: Of its parts, measured or worked out.
        device: Where it computes.
        dtype: Of language model and buffer.
        price_per_hour: Of one device.
    """
    costs = {name: sae_costs(sae) for name, sae in plan.saes.items()}
    parameters = sum(cost.parameters for cost in costs.values())
    held_out = plan.validation_tokens * (seconds.per_fill_token + seconds.per_validation_token)
    spliced = 0.0
    if plan.spliced_rows and plan.validations:
        again = (plan.validations - 1) * splicing_flops(plan, model, first=False)
        flops = plan.spliced_rows * (splicing_flops(plan, model, first=True) + again)
        spliced = flops * seconds.per_model_flop
    by_part = {
        "language_model" if plan.data.reads_text else "data": plan.fills * plan.fill_tokens * seconds.per_fill_token,
        "sae_steps": plan.batches * seconds.per_step_batch,
        "validation": plan.validations * (held_out + seconds.per_validation) + spliced,
        "saving": plan.saves * _COPIES_SAVED * _FLOAT * parameters * seconds.per_saved_byte,
        "start_and_end": seconds.start + seconds.end,
    }
    total = sum(by_part.values())
    return Forecast(
        tokens=plan.tokens,
        steps=plan.steps,
        devices=plan.devices,
        sae_parameters=parameters,
        model_parameters=model.parameters,
        flops_per_token={
            "language_model": model.site,
            "sae_dense": sum(cost.dense for cost in costs.values()),
            "sae_sparse": sum(cost.sparse for cost in costs.values()),
        },
        seconds=by_part,
        memory=_memory(plan, model, costs, device, dtype),
        cost=None if price_per_hour is None else price_per_hour * plan.devices * total / 3600,
    )


def seconds_of(machine: Machine, plan: RunPlan, model: LanguageModelCosts) -> Seconds:
    """Work out the seconds of a run's parts on a machine that is not at hand, without what Lightning adds.

    Products of whole matrices go at its FLOPs; all else is bound by its memory: the optimiser, what is done to each
    latent, the rows of latents that fire.
    """
    costs = [sae_costs(sae) for sae in plan.saes.values()]
    tokens = plan.data.batch_tokens
    products = tokens * sum(cost.dense for cost in costs) / machine.flops
    weights = _PASSES_OF_A_STEP * _FLOAT * sum(cost.parameters for cost in costs) / plan.accumulated
    each_latent = _FLOAT * tokens * sum(_numbers_per_token(sae) for sae in plan.saes.values())
    rows = _FLOAT * tokens * sum(cost.sparse for cost in costs) / 2
    inference = sum(cost.inference for cost in costs)
    return Seconds(
        per_step_batch=products + (weights + each_latent + rows) / machine.bandwidth,
        per_fill_token=model.site / machine.flops,
        per_validation_token=inference / machine.flops + each_latent / tokens / machine.bandwidth,
        per_model_flop=1 / machine.flops,
        per_validation=0.0,
        per_saved_byte=0.0,
        start=0.0,
        end=0.0,
        matrix_flops=machine.flops,
    )


def _numbers_per_token(sae: Any) -> int:
    copies = _SELECTED_COPIES if isinstance(sae.mechanism, TopK) else _DENSE_COPIES
    return int(copies * sae.d_sae + _INPUT_COPIES * max(sae.d_in, sae.d_out))


def _memory(
    plan: RunPlan, model: LanguageModelCosts, costs: Mapping[str, SAECosts], device: torch.device, dtype: torch.dtype
) -> dict[str, int]:
    """Return bytes by part, and the most of all at once."""
    data = plan.data
    weights = _FLOAT * sum(cost.parameters for cost in costs.values())
    numbers = sum(plan.sites.values())
    elsewhere = _model_is_elsewhere(data, device)
    of_model = (model.parameters - model.rounded) * dtype.itemsize + model.rounded_bytes
    parts = {
        "language_model": 0 if elsewhere else of_model,
        "sae_weights": weights,
        "sae_gradients": weights,
        "sae_adam": (COPIES_IN_TRAINING - 2) * weights,
        "activation_buffer": plan.fill_tokens * numbers * dtype.itemsize,
    }
    if device.type == "cpu":
        parts["libraries"] = psutil.Process().memory_info().rss
    passing = 0 if elsewhere else data.model_batch_tokens * model.hidden * dtype.itemsize
    logits = 2 * plan.spliced_batch_rows * data.context_size * model.vocabulary * (dtype.itemsize + 2 * _FLOAT)
    at_times = {
        # Scales are measured on a copy of the buffer.
        "start": parts["activation_buffer"],
        "language_model_pass": passing + (logits if plan.spliced_rows else 0),
        "sae_step": data.batch_tokens * _FLOAT * sum(_numbers_per_token(sae) for sae in plan.saes.values()),
    }
    peak = sum(parts.values()) + max(at_times.values())
    return parts | at_times | {"language_model_elsewhere": of_model if elsewhere else 0, "peak": peak}


def _model_is_elsewhere(data: DataSettings, device: torch.device) -> bool:
    """Return whether the language model takes no memory of the device that trains."""
    if data.device is None:
        return data.device_map is not None
    own = torch.device(data.device)
    return (own.type, own.index or 0) != (device.type, device.index or 0)
