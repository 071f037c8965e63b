"""The data module of a run in miniature, which serves random activations, and the callback that times it."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightsae.activations.batch import ActivationBatch, with_sinks
from lightsae.activations.files import FileFills
from lightsae.activations.sources import FileSource, SyntheticSource
from lightsae.activations.stream import (
    ActivationStream,
    Fill,
    FillSource,
    HeldOut,
    Process,
    StreamPlan,
)
from lightsae.activations.synthetic.fills import SyntheticFills
from lightsae.activations.synthetic.world import SyntheticWorld
from lightsae.activations.timings import Timings
from lightsae.estimate.plan import RunPlan
from lightsae.sae import SiteRef, Widths

# The buffer of the miniature holds at most so many batches and numbers: enough that serving it misses the caches.
_BATCHES, _NUMBERS = 32, 1 << 26
_TOKENS_AT_ONCE = 1 << 14
_VALIDATION_BATCHES = 4
# Steps are timed for about so many seconds, in blocks from one logged figure to the next: so many blocks at least and
# at most.
_BUDGET, _LEAST, _MOST = 4.0, 3, 20
# From here on a step is a block of its own.
_LONG_STEP = 0.3


class Miniature(LightningDataModule):
    """Serves random activations as an `ActivationDataModule` with these settings would serve real ones."""

    def __init__(self, plan: RunPlan, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.plan, self.device, self.dtype = plan, device, dtype
        data = plan.data
        self.seed, self.normalisation = data.seed, data.normalisation
        self.run_tokens, self.timings = plan.tokens, Timings()
        sites = plan.sites
        batches = min(_BATCHES, _NUMBERS // (data.batch_tokens * sum(sites.values())), plan.fill_tokens)
        self._tokens = max(1, min(batches, plan.fill_tokens // data.batch_tokens)) * data.batch_tokens
        self._fill = _random_activations(sites, self._tokens, data.context_size, device, dtype)
        self._stream: ActivationStream | None = None

    @property
    def validation_batch_tokens(self) -> int:
        """Tokens in a validation batch: whole rows."""
        context = self.plan.data.context_size if self.plan.data.reads_text else 1
        return max(1, self.plan.data.batch_tokens // context) * context

    @property
    def synthetic_world(self) -> SyntheticWorld | None:
        return self.plan.data.synthetic_world

    def widths_at(self, *names: Any) -> Widths:
        return self.plan.data.widths_at(*names)

    def describe(self) -> dict[str, Any]:
        return {}

    def setup(self, stage: str) -> None:
        batches = len(self._fill) // self.plan.data.batch_tokens
        plan = StreamPlan(self.plan.data.batch_tokens, batches, self.plan.batches, self.seed)
        self._stream = ActivationStream(_TheSame(self._fill), plan, self.timings)

    def train_dataloader(self) -> ActivationStream:
        assert self._stream is not None
        return self._stream

    def val_dataloader(self) -> HeldOut:
        context = self.plan.data.context_size if self.plan.data.reads_text else 1
        tokens = self.validation_batch_tokens
        rows = torch.arange(tokens, device=self.device)
        part = self._fill.each(lambda values: values[rows % len(self._fill)])
        batch = replace(part, rows_shape=(tokens // context, context))
        batches = [batch] * _VALIDATION_BATCHES
        if self.synthetic_world is not None:
            # What is measured against the truth costs time, too.
            process = Process(tuple(self.plan.sites), self.device, self.dtype)
            held_out = self.plan.data.source.held_out(process)
            batches = [held_out.make(number) for number in range(_VALIDATION_BATCHES)]
        return HeldOut(lambda number: batches[number], range(_VALIDATION_BATCHES))

    def sample_without_sinks(self, sites: Any) -> dict[SiteRef, Tensor]:
        return {site: self._fill.activations[site] for site in sites}

    def part_of_a_fill(self) -> Callable[[], ActivationBatch]:
        """Return what makes a part of a fill of synthetic activations, or of those of files."""
        data, source = self.plan.data, self.plan.data.source
        plan = StreamPlan(data.batch_tokens, 1, 1, self.seed)
        (width,) = self.plan.sites.values()
        if isinstance(source, SyntheticSource):
            tokens = min(self.plan.fill_tokens, _TOKENS_AT_ONCE)
            buffer = torch.empty(tokens, width, dtype=self.dtype, device=self.device)
            fills: FillSource = SyntheticFills(source.world, plan, buffer, self.timings)
        else:
            assert isinstance(source, FileSource)
            chunks = max(1, min(self.plan.fill_tokens, _TOKENS_AT_ONCE) // source.chunks.size)
            buffer = torch.empty(chunks * source.chunks.size, width, dtype=self.dtype, device=self.device)
            fills = FileFills(source.files, source.chunks, plan, buffer, self.timings)
        numbers = iter(range(1 << 20))
        return lambda: fills.fill(next(numbers)).everything


class _TheSame(FillSource):
    """Serves one buffer over and over."""

    def __init__(self, everything: ActivationBatch) -> None:
        self._fill = Fill(everything, torch.arange(len(everything), device=everything.tokens.device))

    def fill(self, number: int) -> Fill:
        return self._fill


def _random_activations(
    sites: dict[SiteRef, int], tokens: int, context: int, device: torch.device, dtype: torch.dtype
) -> ActivationBatch:
    generator = torch.Generator().manual_seed(0)
    places = torch.arange(tokens, device=device)
    site = next(iter(sites))
    drawn = {s: torch.randn(tokens, w, generator=generator).to(device, dtype) for s, w in sites.items()}
    batch = ActivationBatch.without_text(site, drawn[site], places // context)
    return with_sinks(replace(batch, activations=drawn, positions=places % context, tokens=places % 7))


class StepClock(Callback):
    """Times steps and validation batches, and ends the fit when it has seen enough. Observes only.

    Attributes:
        start: Seconds before the first step.
        per_batch: Of a batch, the median over blocks.
        per_validation_batch: Of a validation batch, the median.
        per_validation: Of what follows the last one.
        ended: When the last step was over, on the clock.
    """

    def __init__(self, now: Callable[[], float], block: int) -> None:
        self.start = self.per_batch = self.per_validation_batch = self.per_validation = self.ended = 0.0
        self._now, self._block = now, max(1, block)
        self._marks: list[float] = []
        self._validation: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._now()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = self._now() - self._began

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._marks.append(self._now())
        if len(self._marks) < 4:
            return
        taken = self._marks[-1] - self._marks[2]  # the first two warm up
        block = 1 if self._marks[3] - self._marks[2] > _LONG_STEP else self._block
        blocks = (len(self._marks) - 3) // block
        if blocks >= _LEAST and (taken > _BUDGET or blocks >= _MOST):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ended = self._now()
        marks = self._marks[2:] if len(self._marks) > 3 else self._marks
        if len(marks) < 2:  # a run of one batch
            self.per_batch = self._now() - marks[0]
            return
        block = 1 if marks[1] - marks[0] > _LONG_STEP or len(marks) <= self._block else self._block
        self.per_batch = median((b - a) / block for a, b in zip(marks[::block], marks[block::block], strict=False))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._validation.append(self._now())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        marks = self._validation
        self.per_validation_batch = median(b - a for a, b in pairwise(marks))
        self.per_validation = max(0.0, self._now() - marks[-1] - self.per_validation_batch)
