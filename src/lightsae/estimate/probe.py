"""A run in miniature, timed: a pass of a random language model, some steps and validation batches of the real SAEs.

Nothing is downloaded, no text is read: activations and tokens are random, in the shapes of the run.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lightsae.estimate.counts import LanguageModelCosts
from lightsae.estimate.machine import measured_flops, wait_for
from lightsae.estimate.miniature import Miniature, StepClock
from lightsae.estimate.plan import RunPlan
from lightsae.estimate.random_model import seconds_per_flop
from lightsae.progress import NullProgress, Progress
from lightsae.training.module import SAEModule

Clock = Callable[[], float]
# What a save is measured by, at most.
_SAVED_BYTES = 1 << 25


@dataclass(frozen=True)
class Seconds:
    """Seconds of the parts of a run on one device.

    Attributes:
        per_step_batch: Of a batch: its share of a step, with what Lightning adds.
        per_fill_token: Of a token of a fill: language models, or what else makes activations.
        per_validation_token: Of a held-out token, without the language model.
        per_validation: Of what a validation does once.
        per_model_flop: Of a FLOP of the language model.
        per_saved_byte: Of a byte of a checkpoint, as it is written.
        start: Of scales, medians and thresholds, before the first step.
        end: Of pictures and the like, after the last one.
        matrix_flops: FLOPs per second of a product of matrices in the dtype of the steps, to compare with.
    """

    per_step_batch: float
    per_fill_token: float
    per_validation_token: float
    per_validation: float
    per_model_flop: float
    per_saved_byte: float
    start: float
    end: float
    matrix_flops: float


def probe(
    plan: RunPlan,
    module: SAEModule,
    model: LanguageModelCosts,
    *,
    device: torch.device,
    dtype: torch.dtype,
    precision: str | int | None = None,
    callbacks: list[Callback] | None = None,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> Seconds:
    """Time the parts of a run on a device of this machine, in some seconds to a minute.

    Args:
        plan: Of the run.
        module: What it trains; it is trained here, so that it is of no further use.
        model: Costs of the language models.
        device: Where the run computes.
        dtype: Of language model and buffer.
        precision: Of the Trainer.
        callbacks: Those of the run that cost time in every step or validation.
        progress: Where the stages are reported.
        clock: Gives seconds; `time.process_time` is not disturbed by others who use the machine.
    """
    progress = progress or NullProgress()
    timer = _Timer(device, clock)
    with progress.stage("products of matrices", 1):
        matrix_flops = measured_flops(device, torch.bfloat16 if "bf16" in str(precision) else torch.float32, clock)
    per_model_flop = 0.0
    if plan.data.reads_text:
        with progress.stage("language model", 1):
            per_model_flop = seconds_per_flop(plan, device, dtype, matrix_flops, timer.median)
    per_fill_token = per_model_flop * model.site
    miniature = Miniature(plan, device, dtype)
    if not plan.data.reads_text:
        with progress.stage("data", 1):
            part = miniature.part_of_a_fill()
            per_fill_token = timer.median(part) / len(part())
    with tempfile.TemporaryDirectory() as folder:
        steps = StepClock(timer.now, plan.log_every)
        trainer = Trainer(
            accelerator=device.type if device.type != "cuda" else "gpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_steps=plan.steps,
            accumulate_grad_batches=plan.accumulated,
            log_every_n_steps=plan.log_every,
            logger=TensorBoardLogger(folder),
            callbacks=[steps, *(callbacks or [])],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            check_val_every_n_epoch=None,
            default_root_dir=folder,
        )
        with progress.stage("steps of the SAE", 1), _as_run():
            trainer.fit(module, miniature)
            end = timer.now() - steps.ended
        with progress.stage("validation", 1), _as_run():
            trainer.limit_val_batches = 1.0
            trainer.validate(module, miniature, verbose=False)
        per_saved_byte = _seconds_per_saved_byte(module, Path(folder), timer)
    return Seconds(
        per_step_batch=steps.per_batch,
        per_fill_token=per_fill_token,
        per_validation_token=steps.per_validation_batch / miniature.validation_batch_tokens,
        per_validation=steps.per_validation,
        per_model_flop=per_model_flop,
        per_saved_byte=per_saved_byte,
        start=steps.start,
        end=end,
        matrix_flops=matrix_flops,
    )


class _Timer:
    """Measures calls until the device has done them."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._device, self._clock = device, clock

    def now(self) -> float:
        wait_for(self._device)
        return self._clock()

    def once(self, call: Callable[[], object]) -> float:
        began = self.now()
        call()
        return self.now() - began

    def median(self, call: Callable[[], object], times: int = 5) -> float:
        """Return the seconds of a call: the median of some, after one that warms up."""
        self.once(call)
        return median(self.once(call) for _ in range(times))


def _seconds_per_saved_byte(module: SAEModule, folder: Path, timer: _Timer) -> float:
    """Time a checkpoint and the hash of an export, on as many bytes as are enough to tell."""
    tensors: list[Tensor] = []
    for parameter in module.parameters():
        tensors.append(parameter.detach().cpu().flatten()[: _SAVED_BYTES // 4].clone())
        if sum(tensor.nbytes for tensor in tensors) >= _SAVED_BYTES:
            break

    def save() -> None:
        with (folder / "saved").open("wb") as file:
            torch.save(tensors, file)
        for tensor in tensors:
            hashlib.sha256(tensor.numpy().tobytes()).hexdigest()

    return timer.median(save, times=3) / sum(tensor.nbytes for tensor in tensors)


@contextmanager
def _as_run() -> Iterator[None]:
    """Leave the generators as they were: what is estimated changes nothing."""
    with torch.random.fork_rng(devices=[]):
        yield
