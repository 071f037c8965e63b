"""How often each latent fires over a window of tokens: which are dead, which are dense.

Axes: F latents. The window is what was seen since the last reset, counted in tokens.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightsae.metrics.pooled import PooledMetric


def dead_fraction(firings: Int[Tensor, " F"]) -> Float[Tensor, ""]:
    """Share of the latents that fired on no token."""
    return (firings == 0).double().mean()


def dense_fraction(firings: Int[Tensor, " F"], tokens: Int[Tensor, ""], threshold: float = 0.1) -> Float[Tensor, ""]:
    """Share of the latents that fired on more than `threshold` of the tokens."""
    return (firings > threshold * tokens.double()).double().mean()


def log10_frequencies(firings: Int[Tensor, " F"], tokens: Int[Tensor, ""]) -> Float[Tensor, " F"]:
    """Return log10 of the share of tokens on which each latent fired.

    A silent latent has no logarithm; it stands one decade below the rarest firing that the window can show.
    """
    return (firings.double().clamp_min(0.1) / tokens).log10()


class LatentFrequencies(PooledMetric):
    """Counts, for each latent, the tokens on which it fired.

    `compute` returns `dead_fraction`, `dense_fraction` (more than 10% of tokens) and `dense_fraction_1pct`.

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
        return {
            "dead_fraction": dead_fraction(self.firings),
            "dense_fraction": dense_fraction(self.firings, self.tokens),
            "dense_fraction_1pct": dense_fraction(self.firings, self.tokens, 0.01),
            "tokens": self.tokens,
            "log10_frequencies": log10_frequencies(self.firings, self.tokens),
        }
