"""Products with latents of which few are non-zero, and their gradients, without a dense (T, F) tensor.

Axes:    T tokens, D width, F latents, N non-zero latents in all T tokens.
Layout:  compressed rows. `indices[offsets[t]:offsets[t + 1]]` are the latents that fire on token t.

Every gather-and-sum is one `embedding_bag`: of decoder rows by token in the forward pass, and of tokens by latent in
the backward pass. No atomics: the result does not depend on the order in which threads run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lightsae.sae import kernels


@dataclass(frozen=True)
class SparsePattern:
    """Which latents fire on which tokens. `per_token` is k where every token has exactly k entries, else None."""

    indices: Int[Tensor, " N"]
    offsets: Int[Tensor, " T_plus_1"]
    width: int
    per_token: int | None = None

    @classmethod
    def from_rows(cls, indices: Int[Tensor, "T k"], width: int) -> "SparsePattern":
        tokens, k = indices.shape
        offsets = torch.arange(0, tokens * k + 1, k, device=indices.device) if k else indices.new_zeros(tokens + 1)
        return cls(indices.reshape(-1), offsets, width, k)

    @property
    def tokens(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def token_of(self) -> Int[Tensor, " N"]:
        """The token of each entry."""
        tokens = torch.arange(self.tokens, device=self.indices.device)
        if self.per_token is not None:
            return tokens.repeat_interleave(self.per_token)
        return tokens.repeat_interleave(self.offsets.diff(), output_size=len(self.indices))

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " F_plus_1"]]:
        """The same entries in the order of their latents: their places, their tokens, and each latent's offset."""
        order = torch.argsort(self.indices, stable=True)
        counts = torch.zeros(self.width, dtype=torch.long, device=self.indices.device)
        # scatter_add of ones into integers is exact in any order; bincount would wait for the GPU to size its result.
        counts.scatter_add_(0, self.indices.long(), torch.ones_like(self.indices, dtype=torch.long))
        return order, self.token_of[order], F.pad(counts.cumsum(0), (1, 0))


@dataclass(frozen=True)
class SparseLatents:
    """The non-zero latents of T tokens. An entry may be 0: TopK keeps k places even where fewer are positive."""

    values: Float[Tensor, " N"]
    pattern: SparsePattern

    @classmethod
    def from_rows(cls, values: Float[Tensor, "T k"], indices: Int[Tensor, "T k"], width: int) -> "SparseLatents":
        return cls(values.reshape(-1), SparsePattern.from_rows(indices, width))

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "T F"]) -> "SparseLatents":
        """Keep what is not zero. Waits for the device: the number of entries has to be known.

        >>> latents = SparseLatents.from_dense(torch.tensor([[0.0, 2.0, 3.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
        >>> latents.values.tolist(), latents.indices.tolist(), latents.offsets.tolist()
        ([2.0, 3.0, 1.0], [1, 2, 0], [0, 2, 2, 3])
        """
        tokens, indices = dense.nonzero(as_tuple=True)
        counts = torch.bincount(tokens, minlength=len(dense))
        pattern = SparsePattern(indices, F.pad(counts.cumsum(0), (1, 0)), dense.shape[1])
        return cls(dense[tokens, indices], pattern)

    @property
    def indices(self) -> Int[Tensor, " N"]:
        return self.pattern.indices

    @property
    def offsets(self) -> Int[Tensor, " T_plus_1"]:
        return self.pattern.offsets

    @property
    def rows(self) -> tuple[Float[Tensor, "T k"], Int[Tensor, "T k"]]:
        """Values and indices as (T, k), where every token has the same number of entries."""
        k = self.pattern.per_token
        assert k is not None, "these latents have no fixed k"
        return self.values.view(-1, k), self.indices.view(-1, k)

    def to_dense(self) -> Float[Tensor, "T F"]:
        dense = self.values.new_zeros(self.pattern.tokens, self.pattern.width)
        return dense.index_put((self.pattern.token_of, self.indices), self.values)

    def detach(self) -> "SparseLatents":
        return SparseLatents(self.values.detach(), self.pattern)

    def to(self, device: torch.device | str, **kwargs: Any) -> "SparseLatents":
        indices, offsets = (t.to(device, **kwargs) for t in (self.indices, self.offsets))
        return SparseLatents(self.values.to(device, **kwargs), replace(self.pattern, indices=indices, offsets=offsets))


Latents = Tensor | SparseLatents
Selection = Callable[[Tensor], tuple[Tensor, SparsePattern]]


def as_sparse(latents: Latents) -> SparseLatents:
    """Return latents as values and indices; see `SparseLatents.from_dense`."""
    return SparseLatents.from_dense(latents) if isinstance(latents, Tensor) else latents


def decode(latents: Latents, W_dec: Float[Tensor, "F D"]) -> Float[Tensor, "T D"]:
    """Return the sum of each token's decoder rows, weighted by its latents; no bias."""
    if isinstance(latents, Tensor):
        return latents @ W_dec
    out: Tensor = _SparseDecode.apply(latents.values, W_dec, latents.pattern)  # type: ignore[no-untyped-call]
    return out


def encode_selected(
    x: Float[Tensor, "T D"],
    centre: Float[Tensor, " D"] | None,
    W_enc: Float[Tensor, "D F"],
    b_enc: Float[Tensor, " F"],
    select: Selection,
) -> SparseLatents:
    """Return the selected entries of (x - centre) W_enc + b_enc, differentiable in all four.

    Args:
        x: Inputs; in training they come from a frozen model, and no gradient is worked out for them.
        centre: What is subtracted first (the decoder's bias), or None.
        W_enc: Encoder.
        b_enc: Encoder bias.
        select: From pre-activations (T, F) to the kept values (N,) and their pattern. The gradient passes through the
            kept values that are positive.
    """
    holder: list[SparsePattern] = []
    values: Tensor = _SparseEncode.apply(x, centre, W_enc, b_enc, select, holder)  # type: ignore[no-untyped-call]
    return SparseLatents(values, holder[0])


def _weighted_rows(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Return, for each bag, the sum of `weights[n] * table[rows[n]]` over its entries."""
    weights = weights.to(table.dtype)
    if kernels.used_for(table):
        from lightsae.sae.kernels.sparse_products import weighted_rows

        return weighted_rows(table, rows, offsets, weights)
    return F.embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def row_products(a: Tensor, b: Tensor, pattern: SparsePattern, chunk: int = 1 << 13) -> Tensor:
    """Return <a[token(n)], b[latent(n)]> for every entry n, a chunk at a time: gathered rows stay in the cache.

    Rows are gathered by `index_select`, which copies whole rows; indexing copies number by number on a CPU.
    """
    if kernels.used_for(a, b):
        from lightsae.sae.kernels import sparse_products

        return sparse_products.row_products(a, b, pattern.token_of, pattern.indices)
    out = a.new_empty(len(pattern.indices))
    if pattern.per_token:
        # A token's entries lie together: one small matrix product per token, and no copies of `a`.
        k = pattern.per_token
        rows, indices = max(1, chunk // k), pattern.indices.view(-1, k)
        for start in range(0, len(indices), rows):
            part = slice(start, start + rows)
            gathered = b.index_select(0, indices[part].reshape(-1)).view(-1, k, b.shape[1])
            torch.bmm(gathered, a[part].unsqueeze(2), out=out.view(-1, k, 1)[part])
        return out
    for start in range(0, len(out), chunk):
        part = slice(start, start + chunk)
        rows_of_a = a.index_select(0, pattern.token_of[part])
        out[part] = torch.linalg.vecdot(rows_of_a, b.index_select(0, pattern.indices[part]))
    return out


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, pattern: SparsePattern) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pattern = pattern
        return _weighted_rows(W_dec, pattern.indices, pattern.offsets, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, W_dec = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_values = grad_W = None
        if ctx.needs_input_grad[0]:
            grad_values = row_products(grad.to(W_dec.dtype), W_dec, ctx.pattern).to(values.dtype)
        if ctx.needs_input_grad[1]:
            order, tokens, offsets = ctx.pattern.by_latent
            grad_W = _weighted_rows(grad.to(W_dec.dtype), tokens, offsets, values[order])
        return grad_values, grad_W, None


class _SparseEncode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        centre: Tensor | None,
        W_enc: Tensor,
        b_enc: Tensor,
        select: Selection,
        holder: list[SparsePattern],
    ) -> Tensor:
        centred = x if centre is None else x - centre
        pre = torch.addmm(b_enc, centred, W_enc)  # in bf16 under autocast
        values, pattern = select(pre)
        values = values.to(W_enc.dtype)
        holder.append(pattern)
        ctx.pattern, ctx.has_centre = pattern, centre is not None
        ctx.save_for_backward(centred, W_enc, values)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, values = ctx.saved_tensors
        pattern: SparsePattern = ctx.pattern
        # ReLU follows the selection: a kept entry that is not positive passes nothing.
        grad_pre = torch.where(values > 0, grads[0], 0).to(W_enc.dtype)
        order, tokens, offsets = pattern.by_latent
        by_latent = grad_pre[order]
        grad_W = _weighted_rows(centred.to(W_enc.dtype), tokens, offsets, by_latent).T
        ones = centred.new_ones((1, 1), dtype=W_enc.dtype)
        grad_b = _weighted_rows(ones, torch.zeros_like(tokens), offsets, by_latent).squeeze(1)
        grad_centre = -(W_enc @ grad_b) if ctx.has_centre else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _weighted_rows(W_enc.T.contiguous(), pattern.indices, pattern.offsets, grad_pre)
        return grad_x, grad_centre, grad_W, grad_b, None, None
