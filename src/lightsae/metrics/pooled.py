"""Sums over all tokens seen, kept in full precision: what every metric here shares, means, how often latents fire.

Axes: T tokens, F latents.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torchmetrics import Metric


class PooledMetric(Metric):
    """A metric whose states keep their dtype wherever the module that holds it is moved.

    `bf16-true` calls `module.to(torch.bfloat16)`, which would leave a float64 sum three digits.
    """

    is_differentiable = False
    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        def moved_only(state: Tensor) -> Tensor:
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(moved.device)

        return super()._apply(moved_only, exclude_state)


class TokenMean(PooledMetric):
    """The mean of a number, or of a vector, over all tokens that count.

    Args:
        shape: Shape of one token's value; empty for a number.
        kwargs: Passed to `torchmetrics.Metric`.
    """

    total: Tensor
    tokens: Tensor

    def __init__(self, *shape: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, values: Shaped[Tensor, "T ..."], mask: Bool[Tensor, " T"] | None = None) -> None:
        """Add tokens; where `mask` is given, only those for which it is true."""
        mask = torch.ones(len(values), dtype=torch.bool, device=values.device) if mask is None else mask
        counts = mask.reshape(-1, *[1] * (values.ndim - 1))
        # `where`, not a product: what does not count may be infinite.
        self.total += torch.where(counts, values, 0).sum(0, dtype=torch.float64)
        self.tokens += mask.sum()

    def compute(self) -> Tensor:
        """Return the mean, float64; NaN where no token counts."""
        return self.total / self.tokens


class LatentFrequencies(PooledMetric):
    """Counts, for each latent, the tokens on which it fired since the last reset.

    `compute` returns `dead_fraction` (share of the latents that fired on no token), `dense_fraction` (on more than 10%
    of the tokens), `dense_fraction_1pct`, `tokens`, and `log10_frequencies`: log10 of the share of tokens on which each
    latent fired, (F,).

    Args:
        d_sae: F.
        kwargs: Passed to `torchmetrics.Metric`.
    """

    firings: Tensor
    tokens: Tensor

    def __init__(self, d_sae: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("firings", torch.zeros(d_sae, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, firings: Int[Tensor, " F"], tokens: Int[Tensor, ""] | int) -> None:
        """Add a batch: on how many of its `tokens` each latent fired."""
        self.firings += firings
        self.tokens += tokens

    def compute(self) -> dict[str, Tensor]:
        tokens = self.tokens.double()
        return {
            "dead_fraction": (self.firings == 0).double().mean(),
            "dense_fraction": (self.firings > 0.1 * tokens).double().mean(),
            "dense_fraction_1pct": (self.firings > 0.01 * tokens).double().mean(),
            "tokens": self.tokens,
            # A silent latent has no logarithm; it stands one decade below the rarest firing that could be seen.
            "log10_frequencies": (self.firings.double().clamp_min(0.1) / self.tokens).log10(),
        }
