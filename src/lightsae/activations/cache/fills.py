"""Fills and held-out batches from a cache: random stretches of the whole of it, permuted token by token.

Mixing: the training tokens are cut into stretches of 16 neighbours. An epoch is a random order of all stretches; a fill
is the next stretches of it, as many as the buffer takes, and serves their tokens in random order. So a fill is an even
sample of the whole cache, and all that is left of the order of the corpus is that the 16 tokens of a stretch come in
the same fill. Of b tokens in a batch and n in the buffer, a token meets 15 (b - 1) / (n - 1) others of its stretch in
its batch on average: 0.23 with the defaults. Made from text while training, it meets 127 (b - 1) / (n - 1) of its row.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightsae.activations.batch import ActivationBatch, with_sinks
from lightsae.activations.cache.manifest import Cache
from lightsae.activations.cache.shards import COLUMNS, TOKENS, Spans, batch_of
from lightsae.activations.fills import ReadSettings, rows_of_rank, served_fill
from lightsae.activations.stream import Fill, FillSource, HeldOut, Process, StreamPlan
from lightsae.activations.timings import Timings
from lightsae.errors import CorpusError, arg
from lightsae.lm.dtypes import DTYPES
from lightsae.randomness import ShuffledEpochs
from lightsae.sae.sites import SiteRef

# Tokens that are read in one piece: fewer mix better, and cost more reads.
STRETCH = 16


class CacheReader:
    """Reads spans of a cache to where the process wants them.

    Args:
        cache: Where they come from.
        spans: Those of one side of the corpus.
        process: Says which sites, in which dtype, on which device.
    """

    def __init__(self, cache: Cache, spans: Spans, process: Process) -> None:
        self.spans, self.process, self.length = spans, process, spans.length
        self._stored = DTYPES[cache.identity.dtype]
        self._names = {site: cache.sites[site].name for site in process.sites}
        self._widths = {site: cache.sites[site].width for site in process.sites}
        # What lies in memory as it does on the disk needs no memory beside the buffer.
        self._is_buffer = process.device.type == "cpu" and process.dtype == self._stored
        self._staged: dict[str, Tensor] = {}

    def read(self, numbers: NDArray[np.int64], buffers: dict[SiteRef, Tensor]) -> ActivationBatch:
        """Return spans as one batch, whose activations lie in `buffers`; those are made where they are missing.

        Raises:
            CorpusError: As `Spans.read`.
        """
        count = len(numbers) * self.length
        for site, width in self._widths.items():
            if site not in buffers or len(buffers[site]) < count:
                buffers[site] = self.process.buffer(count, width)
        tokens = self._staging(TOKENS, count, len(COLUMNS), torch.int32)
        targets = {
            name: buffers[site][:count] if self._is_buffer else self._staging(name, count, self._widths[site])
            for site, name in self._names.items()
        }
        everything = {TOKENS: tokens, **targets}
        self.spans.read(numbers, {name: target.view(torch.uint8).numpy() for name, target in everything.items()})
        activations = {site: buffers[site][:count] for site in self._names}
        if not self._is_buffer:
            for site, name in self._names.items():
                activations[site].copy_(targets[name])
        # A copy: the next read writes over these.
        return batch_of(tokens.to(self.process.device, copy=True), activations)

    def _staging(self, name: str, count: int, width: int, kind: torch.dtype | None = None) -> Tensor:
        """Return memory of the host, the same in each call, from which an accelerator takes data at its full speed."""
        if name not in self._staged or len(self._staged[name]) < count:
            pinned = self.process.device.type == "cuda"
            self._staged[name] = torch.empty(count, width, dtype=kind or self._stored, pin_memory=pinned)
        return self._staged[name][:count]


class CacheFills(FillSource):
    """Fills the buffer with the next stretches of an epoch."""

    def __init__(
        self,
        cache: Cache,
        spans: Spans,
        reading: ReadSettings,
        plan: StreamPlan,
        process: Process,
        spans_in_fill: int,
        timings: Timings,
    ) -> None:
        self.spans, self.reading, self.plan, self.timings = spans, reading, plan, timings
        self.spans_in_fill = spans_in_fill
        self._reader = CacheReader(cache, spans, process)
        self._epochs = ShuffledEpochs(len(spans), plan.seed)
        self._buffers: dict[int, dict[SiteRef, Tensor]] = {}

    def fill(self, number: int) -> Fill:
        first = (number * self.plan.world + self.plan.rank) * self.spans_in_fill
        # In the order of the files; the tokens of a fill are permuted before they are served.
        chosen = np.sort(self._epochs.places(first, self.spans_in_fill)).astype(np.int64)
        with self.timings.measure("text"):
            batch = self._reader.read(chosen, self._buffers.setdefault(number % self.slots, {}))
        return served_fill(with_sinks(batch), self.reading)


def held_out_rows(cache: Cache, spans: Spans, max_tokens: int, rows_in_batch: int, process: Process) -> HeldOut:
    """Return the first held-out rows of a cache, whole and in order.

    Raises:
        CorpusError: There is not one row for each process.
    """
    reader, buffers = CacheReader(cache, spans, process), dict[SiteRef, Tensor]()
    rows = max(1, min(len(spans), max_tokens // spans.length))
    if rows < process.world:
        raise CorpusError(
            f"{arg('cache')} {cache.folder!r} has {rows} held-out rows for {process.world} devices; take fewer devices."
        )

    def read(some: NDArray[np.int64]) -> ActivationBatch:
        batch = reader.read(some, buffers)
        return with_sinks(batch.each(lambda values: values, rows_shape=(len(some), spans.length)))

    return HeldOut(read, rows_of_rank(rows, rows_in_batch, process))
