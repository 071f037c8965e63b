"""What the processes of a run tell each other about a batch; with a single process nothing is told.

Where latents are dealt out (`training/latent_parallel.py`), the ranks form a grid: those of one group have the same
latents and batches of their own, those of the other the same batch and latents of their own.

Each rank has batches of its own, all of one size. While `one_batch` is open they count as one: what a loss term or a
mechanism measures of "the batch" is that of all ranks, so that a run on several devices is the run on one of them with
a batch of all their tokens. Lightning's DDP takes the mean of the ranks' gradients; loss terms are written for that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup

Reduction = Literal["sum", "mean", "max", "min"]
_OPS = {
    "sum": torch.distributed.ReduceOp.SUM,
    "mean": torch.distributed.ReduceOp.SUM,
    "max": torch.distributed.ReduceOp.MAX,
    "min": torch.distributed.ReduceOp.MIN,
}
_is_one_batch = False
# Of the ranks with batches, and of those with latents, of their own; None: all of them, and this one alone.
_data: ProcessGroup | None = None
_latents: ProcessGroup | None = None
# Of a number's bits, so many are looked at in one round of `among_largest`.
_BITS = 11


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def set_groups(data: ProcessGroup | None, latents: ProcessGroup | None) -> None:
    """Say which ranks have batches of their own, and which have latents of their own."""
    global _data, _latents
    _data, _latents = data, latents


@contextmanager
def alone() -> Iterator[None]:
    """While open, this rank works on whole SAEs of its own."""
    global _latents
    before, _latents = _latents, None
    try:
        yield
    finally:
        _latents = before


def over_ranks(values: Tensor, reduction: Reduction) -> Tensor:
    """Reduce a tensor over all ranks with batches of their own, in place, and return it; with a single one it stays."""
    return _reduced(values, reduction, _data) if is_distributed() else values


def over_all(values: Tensor, reduction: Reduction) -> Tensor:
    """Reduce a tensor over all processes, in place, and return it; with a single one it stays as it is."""
    return _reduced(values, reduction, None) if is_distributed() else values


def over_shards(values: Tensor, reduction: Reduction) -> Tensor:
    """Reduce a tensor over the ranks with latents of their own, in place, and return it."""
    return values if _latents is None else _reduced(values, reduction, _latents)


def _reduced(values: Tensor, reduction: Reduction, group: ProcessGroup | None) -> Tensor:
    torch.distributed.all_reduce(values, _OPS[reduction], group=group)
    if reduction == "mean":
        values /= torch.distributed.get_world_size(group)
    return values


def shards() -> int:
    """Return to how many ranks latents are dealt."""
    return 1 if _latents is None else torch.distributed.get_world_size(_latents)


def shard() -> int:
    """Return which of them this rank is."""
    return 0 if _latents is None else torch.distributed.get_rank(_latents)


def sum_over_shards(value: Tensor) -> Tensor:
    """Return the sum over all latents of what was summed over this rank's; its gradient goes to each rank's own."""
    if _latents is None:
        return value
    summed: Tensor = _SumOverShards.apply(value)  # type: ignore[no-untyped-call]
    return summed


def used_by_shards(value: Tensor) -> Tensor:
    """Return a tensor that all ranks have, where each uses it for its own latents: gradients add up over them."""
    if _latents is None:
        return value
    used: Tensor = _UsedByShards.apply(value)  # type: ignore[no-untyped-call]
    return used


class _SumOverShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return over_shards(value.detach().clone(), "sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _UsedByShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return over_shards(grads[0].clone(), "sum")


def from_shards(values: Tensor) -> list[Tensor]:
    """Return every shard's tensor, all of one shape, in the order of the latents."""
    if _latents is None:
        return [values]
    gathered = [torch.empty_like(values) for _ in range(shards())]
    torch.distributed.all_gather(gathered, values.contiguous(), group=_latents)
    return gathered


def largest_of_rows(values: Float[Tensor, "T n"], k: int) -> tuple[Float[Tensor, "T k"], Int[Tensor, "T k"]]:
    """Return each row's k largest of all shards' columns: of those of this rank the values and places.

    What others hold counts as 0 here, so that each shard has k places. First each shard's own k, then the k largest of
    those candidates.
    """
    own, places = values.topk(min(k, values.shape[1]), dim=1, sorted=False)
    if _latents is None:
        return own, places
    padding = (0, k - own.shape[1])
    candidates = torch.nn.functional.pad(own, padding, value=-torch.inf)
    chosen = torch.cat(from_shards(candidates), dim=1).topk(k, dim=1, sorted=False).indices
    kept = torch.zeros(len(values), k * shards(), dtype=torch.bool, device=values.device).scatter_(1, chosen, True)
    mine = kept[:, shard() * k : shard() * k + own.shape[1]]
    return torch.where(mine, own, 0), places


@contextmanager
def one_batch() -> Iterator[None]:
    """While open, the batches of all ranks count as one. Every rank has to come here with a batch."""
    global _is_one_batch
    before, _is_one_batch = _is_one_batch, True
    try:
        yield
    finally:
        _is_one_batch = before


def ranks_of_batch() -> int:
    """Return how many ranks' batches count as one here."""
    return torch.distributed.get_world_size(_data) if _is_one_batch and is_distributed() else 1


def over_batch(value: Tensor, reduction: Reduction) -> Tensor:
    """Return what was measured of this rank's batch as that of the whole batch; without a gradient to other ranks."""
    return over_ranks(value.detach().clone(), reduction) if ranks_of_batch() > 1 else value


def with_value_of_batch(mean: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return a mean over this rank's tokens with the value of the mean over all, and the gradient of its own."""
    return mean if ranks_of_batch() == 1 else mean + (over_batch(mean, "mean") - mean.detach())


def softmax_over_batch(logits: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Return softmax weights over the tokens of the whole batch; this rank's, times the number of ranks."""
    if ranks_of_batch() == 1:
        return logits.softmax(0)
    powers = (logits - over_batch(logits.max(), "max")).exp()
    return powers / over_batch(powers.sum(), "mean")


@torch.no_grad()
def among_largest(values: Float[Tensor, " N"], count: int) -> Bool[Tensor, " N"]:
    """Return which positive values are among the `count` largest of those that all ranks of the batch hold.

    Of equal values at the border the first ranks keep theirs. A radix search: positive floating-point numbers are
    ordered as their bits are, so that the smallest number kept is found in a few rounds, each of which adds up 2,048
    counts over the ranks, however many values there are.

    Args:
        values: This rank's.
        count: How many of all ranks' to keep, 1 or more.
    """
    over, rank, number = (over_all, *_world()) if _is_one_batch else (over_shards, shard(), shards())
    wide = values.double() if values.dtype == torch.float64 else values.float()
    bits = wide.relu().contiguous().view(torch.int64 if wide.dtype == torch.float64 else torch.int32).long()
    prefix = torch.zeros((), dtype=torch.long, device=values.device)
    wanted, here = prefix + count, torch.ones_like(bits)
    for shift in range((63 if wide.dtype == torch.float64 else 32) // _BITS * _BITS, -1, -_BITS):
        digits = (bits >> shift) & ((1 << _BITS) - 1)
        counts = torch.zeros(1 << _BITS, dtype=torch.long, device=values.device)
        over(counts.scatter_add_(0, digits, here), "sum")
        at_least = counts.flip(0).cumsum(0).flip(0)  # values whose digit is this one or larger
        digit = ((at_least >= wanted).sum() - 1).clamp_min(0)
        wanted = wanted - (at_least[digit] - counts[digit])
        prefix, here = (prefix << _BITS) | digit, here * (digits == digit)
    equal = bits == prefix
    before = torch.zeros(number, dtype=torch.long, device=values.device)
    before[rank] = equal.sum()
    left = wanted - over(before, "sum")[:rank].sum()
    return ((bits > prefix) | (equal & (equal.cumsum(0) <= left))) & (values > 0)


def _world() -> tuple[int, int]:
    if not is_distributed():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
