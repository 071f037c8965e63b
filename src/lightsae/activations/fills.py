"""Fills from a language model: token rows, shuffled within wide blocks, run to the sites that are read.

A block is `fills_per_block` fills of every rank. Its rows are read in corpus order, permuted, and dealt to the ranks.
The state of the source is its cursor at the start of the block: rows cost a few bytes a token, so that reading a block
again is cheap, and one fill at most is run through the language model a second time.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.corpus.rows import RowSource, TokenRows
from lightsae.activations.stream import Fill, FillSource, HeldOut, Process, StreamPlan, refuse_place, with_sinks
from lightsae.activations.timings import Timings
from lightsae.errors import ConfigError, arg
from lightsae.lm import LanguageModel
from lightsae.lm.hooks import apart
from lightsae.randomness import keyed_generator
from lightsae.sae.sites import SiteRef
from lightsae.stored import misfit

# What a `RowSource` needs to go on.
_ROW_STATE = ("fingerprint", "cursor", "epoch", "document", "used", "rows")


@dataclass(frozen=True)
class ReadSettings:
    """How token rows become activations.

    Attributes:
        sites: Where to read.
        dtype: Of the buffer.
        rows_at_once: Token rows in one forward pass of the language model.
        skip_special: Leave special tokens out of training.
        skip_positions: Leave the first positions of each row out of training.
    """

    sites: tuple[SiteRef, ...]
    dtype: torch.dtype
    rows_at_once: int
    skip_special: bool = False
    skip_positions: int = 0


class LanguageModelFills(FillSource):
    """Makes fills by running a language model over the rows of a corpus."""

    def __init__(
        self,
        rows: RowSource,
        models: Mapping[str, LanguageModel],
        reading: ReadSettings,
        plan: StreamPlan,
        fill_rows: int,
        fills_per_block: int,
        timings: Timings,
    ) -> None:
        self.rows, self.models, self.reading, self.plan = rows, models, reading, plan
        self.fill_rows, self.fills_per_block, self.timings = fill_rows, fills_per_block, timings
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="lightsae-rows")
        # The block that is served; before one has been read, the number says which comes first.
        self._block: TokenRows | None = None
        self._number = 0
        self._block_state: dict[str, Any] = rows.state_dict()
        self._next: Future[tuple[TokenRows, dict[str, Any]]] | None = None
        self._buffers: dict[int, dict[SiteRef, Tensor]] = {}

    @property
    def block_rows(self) -> int:
        return self.fill_rows * self.fills_per_block * self.plan.world

    def state_dict(self) -> dict[str, Any]:
        return {"block": self._number, "fills_per_block": self.fills_per_block, "block_start": self._block_state}

    def check_state(self, state: Any, number: int) -> None:
        super().check_state(state, number)
        refuse_place(misfit(state, {"block": 0, "fills_per_block": 0, "block_start": dict.fromkeys(_ROW_STATE)}))
        fills, block = state["fills_per_block"], state["block"]
        if fills == 0 or block > number // fills:
            refuse_place(f"fill {number} does not come after block {block} of {fills} fills each")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._next is not None:
            self._next.result()  # the reader must not move the source while it is set back
        self.rows.load_state_dict(state["block_start"])
        # A run that is made longer keeps its blocks.
        self.fills_per_block = state["fills_per_block"]
        self._block, self._block_state = None, state["block_start"]
        self._number, self._next = state["block"], None

    def close(self) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)
        self.rows.close()

    def fill(self, number: int) -> Fill:
        block_number, place = divmod(number, self.fills_per_block)
        block = self._block_rows(block_number)
        generator = keyed_generator(self.plan.seed, "rows of a block", block_number)
        mine = torch.randperm(self.block_rows, generator=generator).numpy()[self.plan.rank :: self.plan.world]
        chosen = mine[place * self.fill_rows : (place + 1) * self.fill_rows]
        # Another thread may be changing what the model predicts, in a validation.
        with apart():
            everything = read_rows(
                self.models,
                block.tokens[chosen],
                block.documents[chosen],
                block_number * self.block_rows + chosen,
                self.reading,
                self._buffers.setdefault(number % self.slots, {}),
                self.timings,
                before_pass=self._check_wanted,
            )
        return served_fill(everything, self.reading)

    def _check_wanted(self) -> None:
        if self.stopped:
            raise CancelledError

    def _block_rows(self, number: int) -> TokenRows:
        """Return a block's rows, and read those of the next in the background if the run needs it."""
        while self._block is None or self._number != number:
            # A stream moves on block by block; going back is a matter of `load_state_dict`.
            assert self._number <= number, "the block has been passed"
            reading = self._next or self._reader.submit(self._read_block)
            with self.timings.measure("text"):
                rows, self._block_state = reading.result()
            self._number += self._block is not None
            self._block = rows
            batches_before = (self._number + 1) * self.fills_per_block * self.plan.batches_per_fill
            needed = batches_before < self.plan.total_batches
            self._next = self._reader.submit(self._read_block) if needed else None
        return self._block

    def _read_block(self) -> tuple[TokenRows, dict[str, Any]]:
        """Return a block's rows, and the state of the source before it."""
        start = self.rows.state_dict()
        return self.rows.take(self.block_rows), start


def read_rows(
    models: Mapping[str, LanguageModel],
    tokens: np.ndarray,
    documents: np.ndarray,
    row_numbers: np.ndarray,
    reading: ReadSettings,
    buffers: dict[SiteRef, Tensor],
    timings: Timings,
    before_pass: Callable[[], None] = lambda: None,
) -> ActivationBatch:
    """Run token rows through the models and return every token's activations, in row order.

    Args:
        models: Frozen language models by name; the first one says which tokens are special.
        tokens: (rows, context) ids.
        documents: (rows, context) running document numbers.
        row_numbers: (rows,) running row numbers.
        reading: Sites, dtype, rows of one forward pass.
        buffers: Reused from call to call; filled in here.
        timings: The forward passes are counted as "language_model".
        before_pass: Called before each of them; what it raises ends the reading.
    """
    rows, context = tokens.shape
    main = next(iter(models.values()))
    device = main.device
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
    for name, model in models.items():
        sites = [ref.site for ref in reading.sites if ref.model == name]
        for start in range(0, rows if sites else 0, reading.rows_at_once):
            before_pass()
            part = ids[start : start + reading.rows_at_once]
            with timings.measure("language_model", device):
                captured = model.capture(part, sites)
            for site, values in captured.items():
                # Written into a buffer made outside inference mode: slices of it may meet autograd.
                ref, width = SiteRef(name, site), values.shape[-1]
                if ref not in buffers or len(buffers[ref]) < rows * context:
                    buffers[ref] = torch.empty(rows * context, width, dtype=reading.dtype, device=device)
                buffers[ref][start * context : (start + len(part)) * context].copy_(values.flatten(0, 1))
    flat = ids.flatten()
    special = torch.isin(flat, torch.tensor(main.special_token_ids, device=device, dtype=flat.dtype))
    batch = ActivationBatch(
        activations={ref: buffers[ref][: rows * context] for ref in reading.sites},
        tokens=flat,
        positions=torch.arange(context, device=device).repeat(rows),
        documents=torch.from_numpy(documents.astype(np.int64)).to(device).flatten(),
        rows=torch.from_numpy(row_numbers).to(device).repeat_interleave(context),
        special=special,
        sinks={},
        rows_shape=(rows, context),
    )
    return with_sinks(batch)


def served_fill(everything: ActivationBatch, reading: ReadSettings) -> Fill:
    """Return a fill that serves what the settings do not leave out of training.

    Raises:
        ConfigError: They leave out everything.
    """
    keep = everything.positions >= reading.skip_positions
    if reading.skip_special:
        keep &= ~everything.special
    if not keep.any():
        raise ConfigError(
            f"{arg('skip_special_tokens')} and {arg('skip_positions')} leave no token of a whole buffer to train on."
        )
    return Fill(everything, keep.nonzero().squeeze(1))


def validation_rows(
    rows: TokenRows,
    models: Mapping[str, LanguageModel],
    reading: ReadSettings,
    rows_in_batch: int,
    process: Process,
    timings: Timings,
) -> HeldOut:
    """Return the held-out rows, whole and in order, run through the language model anew in each validation."""
    buffers: dict[SiteRef, Tensor] = {}

    def read(some: NDArray[np.int64]) -> ActivationBatch:
        return read_rows(models, rows.tokens[some], rows.documents[some], some, reading, buffers, timings)

    return HeldOut(read, rows_of_rank(len(rows), rows_in_batch, process))


def rows_of_rank(rows: int, rows_in_batch: int, process: Process) -> list[NDArray[np.int64]]:
    """Return the numbers of the rows in each batch of a rank, in order.

    Every rank gets the same number of rows, so that no rank waits for another at the end.
    """
    numbers = np.arange(rows - rows % process.world)[process.rank :: process.world]
    return [numbers[i : i + rows_in_batch] for i in range(0, len(numbers), rows_in_batch)]
