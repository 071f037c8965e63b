"""How fast a run is, and where its time goes."""

import os
import platform
import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from lightning import LightningModule, Trainer

from lightsae.activations.timings import Timings
from lightsae.callbacks.base import SAECallback, log_once
from lightsae.compat import savers, writes_files
from lightsae.formats.files import write_json

PARTS = ("language_model", "sae_step", "text")
WAITING = "waiting"
MIB = 2**20


class Throughput(SAECallback):
    """Log tokens per second, shares of the time, and memory; write the totals to RUN/throughput.json. Observes only.

    Time runs from the start of training, without validation and without the saving of checkpoints and exports. A share
    is a part's own time over that time: the language model's forward passes, the SAE's step (forward, backward,
    optimiser), waiting for text; `other` is the rest. On a GPU the parts are timed on the device, so that waiting for
    text may overlap with them; the totals wait for the device, hence only every `every_n_steps`. Where the next fill is
    made while one is trained on (`data.prefetch`), model and text run beside the step: their shares then do not add up
    with the others, and `waiting` is the share for which the step stood still for activations. Otherwise it stands
    still for all of both.

    The language model runs once a fill, so that figures over fewer steps than a fill has jump.

    Args:
        every_n_steps: Steps between two points; each tells of the time since the one before.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        self._refuse_if(every_n_steps < 1, "every_n_steps", every_n_steps, "write 1 or more")
        self.every_n_steps = every_n_steps
        self._excluded: dict[str, float] = {}
        self._start: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._pause: dict[str, float] = {}
        self._batch_ended = 0.0
        self._logged_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._excluded, self._pause = {}, {}
        self._start = self._last = self._read(trainer)
        self._batch_ended = _clock(trainer)
        self._logged_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch_ended = _clock(trainer)
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._logged_step:
            self._logged_step = step
            now = self._read(trainer)
            figures = rates(_minus(now, self._last)) | memory(self.module.device)
            self._last = now
            log_once(trainer, {f"perf/{name}": value for name, value in figures.items()})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._start:
            # Validation's own preparation comes before this hook, right after the last batch.
            self._pause = self._totals(trainer) | {"total": self._batch_ended}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pause:
            spent = _minus(self._totals(trainer), self._pause)
            self._excluded = {name: self._excluded.get(name, 0.0) + value for name, value in spent.items()}
            self._batch_ended = _clock(trainer)
            self._pause = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not writes_files(trainer):
            return
        spent = _minus(self._read(trainer), self._start)
        report = {
            "tokens": int(spent["tokens"]),
            "seconds": {name: round(spent[name], 3) for name in ("total", *PARTS, WAITING) if name in spent},
            **{name: round(value, 4) for name, value in (rates(spent) | memory(self.module.device)).items()},
            "machine": machine(self.module.device),
        }
        write_json(self.folder / "throughput.json", report, finite=False)

    def _read(self, trainer: Trainer) -> dict[str, float]:
        """Return tokens and seconds so far, without what validation took."""
        return _minus(self._totals(trainer), self._excluded)

    def _totals(self, trainer: Trainer) -> dict[str, float]:
        timings = getattr(self.data, "timings", None)
        measured = self.module.timings.totals() | (timings.totals() if timings is not None else {})
        ahead = getattr(self.data, "prefetch", False)
        parts = {name: measured.get(name, 0.0) for name in (*PARTS, *([WAITING] if ahead else []))}
        return {"tokens": float(self.module.tokens_seen), "total": _clock(trainer), **parts}


def rates(spent: Mapping[str, float]) -> dict[str, float]:
    """Return tokens per second and each part's share of the time.

    Args:
        spent: "tokens", and seconds: "total" and those of each part; "waiting" where fills are made ahead.
    """
    total = max(spent["total"], 1e-9)
    shares = {name: spent[name] / total for name in PARTS}
    waiting = spent[WAITING] / total if WAITING in spent else shares["language_model"] + shares["text"]
    return {
        "tokens_per_second": spent["tokens"] / total,
        "share_language_model": shares["language_model"],
        "share_sae_step": shares["sae_step"],
        "share_text": shares["text"],
        "share_waiting": waiting,
        "share_other": max(0.0, 1 - shares["sae_step"] - waiting),
    }


def memory(device: torch.device) -> dict[str, float]:
    """Return the process's resident memory, and the most that a GPU held, in MiB."""
    figures = {"memory_mb": psutil.Process().memory_info().rss / MIB}
    if device.type == "cuda":
        figures["gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / MIB
    return figures


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the speed was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": f"{device.type} ({name})", "cpus": os.cpu_count(), "threads": torch.get_num_threads()}


def _clock(trainer: Trainer) -> float:
    """Return seconds on a clock that stands still while checkpoints and exports are written."""
    timings = [saver.timings for saver in savers(trainer) if isinstance(getattr(saver, "timings", None), Timings)]
    saving: float = sum(t.totals().get("saving", 0.0) for t in timings)
    return time.perf_counter() - saving


def _minus(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in now.items()}
