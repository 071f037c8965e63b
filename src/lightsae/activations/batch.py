"""What the stream serves: activations of some tokens, with what is known about each token.

Axes: T tokens, D width of a site.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lightsae.errors import ActivationError, arg
from lightsae.metrics.conventions import is_sink
from lightsae.sae.sites import SiteRef
from lightsae.sae.sparse_ops import SparseLatents


@dataclass(frozen=True)
class ActivationBatch:
    """Activations at every site that the run reads, for the same T tokens.

    Training batches are permuted tokens. Validation batches are whole rows in order, `rows_shape` = (rows, context):
    `tokens.reshape(rows_shape)` gives the model's input back.

    Attributes:
        activations: One (T, D) tensor a site, raw (not normalised), in the dtype of the buffer.
        tokens: Token ids. All -1 where activations come from a file.
        positions: Position in the row, from 0.
        documents: Running number of the document that the token came from.
        rows: Running number of the token row.
        special: The token is a special token of the tokenizer (BOS, EOS, padding, ...).
        sinks: At each site, which tokens are attention sinks: position 0, a special token, or a norm above 10 times the
            site's median. By site, so that a dictionary's figures don't depend on what else is read.
        index: Number of the batch in the run, from 0. With gradient accumulation several batches make a step.
        rows_shape: (rows, context) for whole rows; None for permuted tokens.
        truth: Held-out synthetic data only: the true features of each token, with their magnitudes.
        roles: Whose words each token is, by its number in `roles`; None where no text is a conversation.
        datasets: Place of each token's dataset in a mixture; None where there is none.
    """

    activations: dict[SiteRef, Float[Tensor, "T _"]]
    tokens: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    documents: Int[Tensor, " T"]
    rows: Int[Tensor, " T"]
    special: Bool[Tensor, " T"]
    sinks: dict[SiteRef, Bool[Tensor, " T"]]
    index: int = 0
    rows_shape: tuple[int, int] | None = None
    truth: SparseLatents | None = None
    roles: UInt8[Tensor, " T"] | None = None
    datasets: Int[Tensor, " T"] | None = None

    @classmethod
    def without_text(
        cls, site: SiteRef, values: Float[Tensor, "T D"], rows: Int[Tensor, " T"], truth: SparseLatents | None = None
    ) -> "ActivationBatch":
        """Return activations that come from no text: token, position and document are -1, and nothing is a sink yet."""
        unknown = torch.full((len(values),), -1, device=values.device)
        nothing = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        return cls({site: values}, unknown, unknown, unknown, rows, nothing, {site: nothing}, truth=truth)

    def __len__(self) -> int:
        return len(self.tokens)

    def sinks_at(self, sites: Iterable[SiteRef]) -> Bool[Tensor, " T"]:
        """Return which tokens are attention sinks at one of the sites."""
        return reduce(torch.logical_or, (self.sinks[site] for site in sites))

    def take(self, chosen: Int[Tensor, " t"], index: int) -> "ActivationBatch":
        """Return the chosen tokens as a batch of their own, number `index`."""
        # Indexing would copy number by number on a CPU, and this copies whole rows.
        return self.each(lambda values: values.index_select(0, chosen), index=index, rows_shape=None)

    def draw_rows(self, count: int, generator: torch.Generator) -> "ActivationBatch":
        """Return some whole rows, all their tokens in order.

        Args:
            count: Rows that are drawn; all, where there are no more.
            generator: For that draw.
        """
        assert self.rows_shape is not None, "this source has no rows"
        rows, context = self.rows_shape
        chosen = torch.randperm(rows, generator=generator)[:count].sort().values
        tokens = (chosen[:, None] * context + torch.arange(context)).flatten().to(self.tokens.device)
        return replace(self.take(tokens, self.index), rows_shape=(len(chosen), context))

    def each(self, change: Callable[[Tensor], Tensor], **others: Any) -> "ActivationBatch":
        """Return the batch with every tensor of one entry per token changed, and `others` set."""
        names = ("tokens", "positions", "documents", "rows", "special")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        for name in ("roles", "datasets"):
            changed[name] = None if getattr(self, name) is None else change(getattr(self, name))
        for name in ("activations", "sinks"):
            changed[name] = {site: change(values) for site, values in getattr(self, name).items()}
        return replace(self, **changed, **others)

    def to(self, device: torch.device | str, **kwargs: Any) -> "ActivationBatch":
        """Return the batch on another device; Lightning calls this to move batches."""
        truth = self.truth.to(device, **kwargs) if self.truth is not None else None
        return self.each(lambda values: values.to(device, **kwargs), truth=truth)


def with_sinks(batch: ActivationBatch) -> ActivationBatch:
    """Mark the attention sinks of a batch: position 0, special, or of a norm far above the site's median."""
    everywhere = batch.special | (batch.positions == 0)
    sinks = {}
    for site, values in batch.activations.items():
        norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32)
        sinks[site] = everywhere | is_sink(norms)
    return replace(batch, sinks=sinks)


def check_finite(batch: ActivationBatch, where: str) -> None:
    """Raise an ActivationError where an activation is NaN or infinite; one look a fill, not one a step."""
    for site, values in batch.activations.items():
        # A sum is finite only if every term is; it reads the buffer once and needs no second one.
        if not bool(values.sum(dtype=torch.float32).isfinite()) and not bool(values.isfinite().all()):
            bad = ~values.isfinite().all(dim=1)
            row = int(batch.rows[bad][0])
            is_as_in_file = not site.model and values.dtype == torch.float32
            advice = "Look at that row of the file." if is_as_in_file else f"Try {arg('dtype')}: float32."
            raise ActivationError(
                f"{site} holds NaN or infinity on {int(bad.sum())} of {len(values)} tokens {where}. The first is in "
                f"row {row}. {advice}"
            )
