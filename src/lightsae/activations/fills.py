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

from lightsae.activations.batch import ActivationBatch, with_sinks
from lightsae.activations.corpus.mixture import Rows
from lightsae.activations.corpus.token_rows import TokenRows
from lightsae.activations.stream import Fill, FillSource, HeldOut, Process, StreamPlan, refuse_place
from lightsae.activations.timings import Timings
from lightsae.errors import ConfigError, CorpusError, arg
from lightsae.lm import LanguageModel
from lightsae.lm.hooks import apart
from lightsae.randomness import keyed_generator
from lightsae.sae.sites import SiteRef
from lightsae.stored import misfit

# A block without a token of the roles in so many times its rows is given up.
_HOPELESS = 8


@dataclass(frozen=True)
class ReadSettings:
    """How token rows become activations.

    Attributes:
        sites: Where to read.
        dtype: Of the buffer.
        rows_at_once: Token rows in one forward pass of the language model.
        skip_special: Leave special tokens out of training.
        skip_positions: Leave the first positions of each row out of training.
        roles: Train on tokens of these roles alone; None: on all.
    """

    sites: tuple[SiteRef, ...]
    dtype: torch.dtype
    rows_at_once: int
    skip_special: bool = False
    skip_positions: int = 0
    roles: tuple[str, ...] | None = None


class LanguageModelFills(FillSource):
    """Makes fills by running a language model over the rows of a corpus."""

    def __init__(
        self,
        rows: Rows,
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
        """Rows of a block, as many as its tokens take where all are trained on."""
        return self.fill_rows * self.fills_per_block * self.plan.world

    def state_dict(self) -> dict[str, Any]:
        return {"block": self._number, "fills_per_block": self.fills_per_block, "block_start": self._block_state}

    def check_state(self, state: Any, number: int) -> None:
        super().check_state(state, number)
        refuse_place(misfit(state, {"block": 0, "fills_per_block": 0, "block_start": self.rows.state_kinds}))
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
        mine = torch.randperm(len(block), generator=generator).numpy()[self.plan.rank :: self.plan.world]
        trained = None
        if self.reading.roles is None:
            rows = mine[place * self.fill_rows : (place + 1) * self.fill_rows]
        else:
            # Every fill gets its share of the tokens to train on, in however many rows they stand.
            trained = block.chosen(self.reading.roles, self.reading.skip_positions)
            counts = trained.sum(1)
            mine = mine[counts[mine] > 0]
            before = np.cumsum(counts[mine]) - counts[mine]
            rows = mine[before * self.fills_per_block // max(1, int(counts[mine].sum())) == place]
            trained = trained[rows]
        # Another thread may be changing what the model predicts, in a validation.
        with apart():
            everything = read_rows(
                self.models,
                block.taken(rows),
                self._block_state["rows"] + rows,
                self.reading,
                self._buffers.setdefault(number % self.slots, {}),
                self.timings,
                kept=trained,
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
            needed = self.plan.needs_fill((self._number + 1) * self.fills_per_block)
            self._next = self._reader.submit(self._read_block) if needed else None
        return self._block

    def _read_block(self) -> tuple[TokenRows, dict[str, Any]]:
        """Return a block's rows, and the state of the source before it."""
        start = self.rows.state_dict()
        block = self.rows.take(self.block_rows)
        roles, skip = self.reading.roles, self.reading.skip_positions
        if roles is None:
            return block, start
        # Rows are read until they hold the tokens that the batches of the block take, whatever share of them has roles.
        needed = self.plan.batches_per_fill * self.plan.batch_tokens * self.fills_per_block * self.plan.world
        parts, found = [block], int(block.chosen(roles, skip).sum())
        while found < needed:
            if len(parts) == _HOPELESS and found == 0:
                raise CorpusError(
                    f"{arg('roles')}: there is no token of {', '.join(roles)} in {_HOPELESS * self.block_rows} rows of "
                    "text; name other roles."
                )
            parts.append(self.rows.take(self.fill_rows * self.plan.world))
            found += int(parts[-1].chosen(roles, skip).sum())
        return TokenRows.joined(parts), start


def read_rows(
    models: Mapping[str, LanguageModel],
    rows: TokenRows,
    row_numbers: NDArray[np.int64],
    reading: ReadSettings,
    buffers: dict[SiteRef, Tensor],
    timings: Timings,
    kept: NDArray[np.bool_] | None = None,
    before_pass: Callable[[], None] = lambda: None,
) -> ActivationBatch:
    """Run token rows through the models and return every token's activations, in row order.

    Args:
        models: Frozen language models by name; the first one says which tokens are special.
        rows: The rows.
        row_numbers: (rows,) running row numbers.
        reading: Sites, dtype, rows of one forward pass.
        buffers: Reused from call to call; filled in here.
        timings: The forward passes are counted as "language_model".
        kept: (rows, context) tokens that the batch holds; None: all, in whole rows.
        before_pass: Called before each forward pass; what it raises ends the reading.
    """
    count, context = rows.tokens.shape
    main = next(iter(models.values()))
    device = main.device
    ids = torch.from_numpy(rows.tokens.astype(np.int64)).to(device)
    chosen = None if kept is None else torch.from_numpy(kept).to(device)
    total = count * context if kept is None else int(kept.sum())
    for name, model in models.items():
        sites, end = [ref.site for ref in reading.sites if ref.model == name], 0
        for start in range(0, count if sites else 0, reading.rows_at_once):
            before_pass()
            part = slice(start, start + reading.rows_at_once)
            with timings.measure("language_model", device):
                captured = model.capture(ids[part], sites)
            first = end
            for site, values in captured.items():
                # Written into a buffer made outside inference mode: slices of it may meet autograd.
                ref, width = SiteRef(name, site), values.shape[-1]
                if ref not in buffers or len(buffers[ref]) < total:
                    # Fills of chosen tokens differ a little in size.
                    size = total if chosen is None else total + total // 16
                    buffers[ref] = torch.empty(size, width, dtype=reading.dtype, device=device)
                flat = values.flatten(0, 1) if chosen is None else values[chosen[part]]
                end = first + len(flat)
                buffers[ref][first:end].copy_(flat)

    def of_tokens(values: NDArray[Any] | Tensor) -> Tensor:
        values = torch.as_tensor(values, device=device)
        return values.flatten() if chosen is None else values[chosen]

    def of_rows(values: NDArray[Any]) -> Tensor:
        return of_tokens(torch.from_numpy(values).to(device).repeat_interleave(context).view(count, context))

    tokens = of_tokens(ids)
    batch = ActivationBatch(
        activations={ref: buffers[ref][:total] for ref in reading.sites},
        tokens=tokens,
        positions=of_tokens(torch.arange(context, device=device).repeat(count, 1)),
        documents=of_tokens(rows.documents.astype(np.int64)),
        rows=of_rows(row_numbers),
        special=torch.isin(tokens, torch.tensor(main.special_token_ids, device=device, dtype=tokens.dtype)),
        sinks={},
        rows_shape=(count, context) if chosen is None else None,
        roles=None if rows.roles is None else of_tokens(rows.roles),
        datasets=None if rows.datasets is None else of_rows(rows.datasets.astype(np.int64)),
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
        return read_rows(models, rows.taken(some), some, reading, buffers, timings)

    return HeldOut(read, rows_of_rank(len(rows), rows_in_batch, process))


def rows_of_rank(rows: int, rows_in_batch: int, process: Process) -> list[NDArray[np.int64]]:
    """Return the numbers of the rows in each batch of a rank, in order.

    Every rank gets the same number of rows, so that no rank waits for another at the end.
    """
    numbers = np.arange(rows - rows % process.world)[process.rank :: process.world]
    return [numbers[i : i + rows_in_batch] for i in range(0, len(numbers), rows_in_batch)]
