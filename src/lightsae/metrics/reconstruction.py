"""How well an SAE reconstructs: FVE, MSE, L0, relative reconstruction bias, cosine; one pass for all of them.

Axes:    T tokens, D width, G groups of tokens, P packed sums (7 + D).
Units:   raw activations. Predictions are x_hat, the error is x - x_hat.
Sources: relative reconstruction bias: Rajamanoharan et al. 2024, arXiv:2404.16014. Merging of sums of squares: Chan,
         Golub & LeVeque 1983, "Algorithms for computing the sample variance".
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lightsae.metrics.pooled import PooledMetric


class ReconstructionSums(NamedTuple):
    """What all figures follow from: sums over tokens, float64, one number a group; `mean` has one vector a group.

    Attributes:
        tokens: Number of tokens.
        error: Sum of |x - x_hat|^2.
        spread: Sum of |x - mean|^2.
        predicted: Sum of |x_hat|^2.
        product: Sum of <x, x_hat>.
        cosine: Sum of the cosines between x and x_hat.
        fired: Sum of the numbers of non-zero latents.
        mean: Mean of x.
    """

    tokens: Float[Tensor, "*G"]
    error: Float[Tensor, "*G"]
    spread: Float[Tensor, "*G"]
    predicted: Float[Tensor, "*G"]
    product: Float[Tensor, "*G"]
    cosine: Float[Tensor, "*G"]
    fired: Float[Tensor, "*G"]
    mean: Float[Tensor, "*G D"]

    def pack(self) -> Float[Tensor, "*G P"]:
        return torch.cat([torch.stack(self[:-1], dim=-1), self.mean], dim=-1)

    @classmethod
    def unpack(cls, packed: Float[Tensor, "*G P"]) -> "ReconstructionSums":
        return cls._make([*packed[..., :7].unbind(-1), packed[..., 7:]])

    @property
    def fve(self) -> Float[Tensor, "*G"]:
        """1 - sum|x - x_hat|^2 / sum|x - mean|^2: 1 perfect, 0 as good as predicting the mean, below 0 worse."""
        return 1 - self.error / self.spread

    @property
    def mse(self) -> Float[Tensor, "*G"]:
        """Mean of (x - x_hat)^2 over tokens and dimensions; square of the activations' unit."""
        return self.error / (self.tokens * self.mean.shape[-1])

    @property
    def l0(self) -> Float[Tensor, "*G"]:
        """Mean number of non-zero latents per token."""
        return self.fired / self.tokens

    @property
    def relative_reconstruction_bias(self) -> Float[Tensor, "*G"]:
        """E|x_hat|^2 / E<x, x_hat>: 1 is unbiased, below 1 the reconstructions are too short (shrinkage)."""
        return self.predicted / self.product

    @property
    def mean_cosine(self) -> Float[Tensor, "*G"]:
        """Mean over tokens of the cosine between x and x_hat; a zero vector counts as 0."""
        return self.cosine / self.tokens


class TokenTerms(NamedTuple):
    """What the figures are sums of, for each token: |x - x_hat|^2, |x|^2, |x_hat|^2, <x, x_hat>, the cosine."""

    error: Float[Tensor, " T"]
    square: Float[Tensor, " T"]
    predicted: Float[Tensor, " T"]
    product: Float[Tensor, " T"]
    cosine: Float[Tensor, " T"]


def token_terms(x: Float[Tensor, "T D"], x_hat: Float[Tensor, "T D"]) -> TokenTerms:
    """Return the terms of each token; the cosine with a zero vector is 0."""
    square, predicted, product = (x * x).sum(1), (x_hat * x_hat).sum(1), (x * x_hat).sum(1)
    cosine = product / (square.sqrt() * predicted.sqrt()).clamp_min(torch.finfo(x.dtype).tiny)
    return TokenTerms((x - x_hat).square().sum(1), square, predicted, product, cosine)


def reconstruction_sums(
    x: Float[Tensor, "T D"],
    x_hat: Float[Tensor, "T D"],
    fired: Shaped[Tensor, " T"],
    groups: Bool[Tensor, "G T"],
) -> ReconstructionSums:
    """Return the sums of one batch for several groups of its tokens.

    Args:
        x: Activations.
        x_hat: Their reconstructions.
        fired: Number of non-zero latents of each token.
        groups: Which tokens belong to which group. All are centred by the first one's mean, so it should be the one
            without outliers.
    """
    # Half precision has neither the digits nor the range for squares; float64 inputs stay what they are.
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, x_hat = x.to(dtype), x_hat.to(dtype)
    counts = groups.sum(1).double()
    # Sums of squares are taken around a rough mean and corrected by the exact one: nothing cancels.
    centre = torch.where(groups[0, :, None], x, 0).sum(0) / counts[0].clamp_min(1).to(dtype)
    centred = x - centre
    error, _, predicted, product, cosine = token_terms(x, x_hat)
    per_token = torch.stack([error, centred.square().sum(1), predicted, product, cosine, fired.to(dtype)])
    totals = torch.where(groups[:, None], per_token, 0).sum(-1, dtype=torch.float64)
    offset = torch.stack([torch.where(group[:, None], centred, 0).sum(0, dtype=torch.float64) for group in groups])
    offset /= counts.clamp_min(1)[:, None]
    error, spread, predicted, product, cosine, fired = totals.unbind(1)
    spread = (spread - counts * offset.square().sum(1)).clamp_min(0)
    return ReconstructionSums(counts, error, spread, predicted, product, cosine, fired, centre + offset)


def merge(parts: ReconstructionSums) -> ReconstructionSums:
    """Return the sums over all tokens of the parts that stand along the first axis; exact up to float64 rounding."""
    summed = ReconstructionSums(*(part.sum(0) for part in parts))
    weight = parts.tokens / summed.tokens.clamp_min(1)
    mean = (weight[..., None] * parts.mean).sum(0)
    between = (parts.tokens * (parts.mean - mean).square().sum(-1)).sum(0)
    return summed._replace(spread=summed.spread + between, mean=mean)


def merge_packed(packed: Float[Tensor, "n *parts P"]) -> Float[Tensor, "*parts P"]:
    """Merge `pack`ed sums of several parts: `merge`, for states of metrics."""
    return merge(ReconstructionSums.unpack(packed)).pack()


class ReconstructionStatistics(PooledMetric):
    """All reconstruction figures, pooled over all tokens seen, with and without attention sinks.

    `compute` returns `fve`, `mse`, `relative_reconstruction_bias` and `cosine`, each also as `..._no_sinks`, and `l0`.
    Figures of no tokens are NaN.

    Args:
        width: D.
        kwargs: Passed to `torchmetrics.Metric`.
    """

    packed: Tensor

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Two groups, ordinary tokens and sinks. One state, because means and sums of squares merge together.
        self.add_state("packed", torch.zeros(2, 7 + width, dtype=torch.float64), dist_reduce_fx=merge_packed)

    def update(
        self,
        x: Float[Tensor, "T D"],
        x_hat: Float[Tensor, "T D"],
        fired: Shaped[Tensor, " T"],
        sinks: Bool[Tensor, " T"] | None = None,
    ) -> None:
        """Add a batch: activations, reconstructions, non-zero latents of each token, and which tokens are sinks."""
        sinks = torch.zeros(len(x), dtype=torch.bool, device=x.device) if sinks is None else sinks
        sums = reconstruction_sums(x, x_hat, fired, torch.stack([~sinks, sinks]))
        self.packed = merge_packed(torch.stack([self.packed, sums.pack()]))

    def compute(self) -> dict[str, Tensor]:
        groups = ReconstructionSums.unpack(self.packed)
        everything, no_sinks = merge(groups), ReconstructionSums.unpack(self.packed[0])
        figures = {"l0": everything.l0}
        for suffix, sums in (("", everything), ("_no_sinks", no_sinks)):
            figures[f"fve{suffix}"] = sums.fve
            figures[f"mse{suffix}"] = sums.mse
            figures[f"relative_reconstruction_bias{suffix}"] = sums.relative_reconstruction_bias
            figures[f"cosine{suffix}"] = sums.mean_cosine
        return figures


class FractionOfVarianceExplained(PooledMetric):
    """Pooled over every token seen. Unitless: 1 perfect, 0 as good as predicting the mean.

    Args:
        width: D.
        kwargs: Passed to `torchmetrics.Metric`.
    """

    higher_is_better = True
    packed: Tensor

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("packed", torch.zeros(7 + width, dtype=torch.float64), dist_reduce_fx=merge_packed)

    def update(
        self, x: Float[Tensor, "T D"], x_hat: Float[Tensor, "T D"], mask: Bool[Tensor, " T"] | None = None
    ) -> None:
        """Add a batch; where `mask` is given, only the tokens for which it is true."""
        mask = torch.ones(len(x), dtype=torch.bool, device=x.device) if mask is None else mask
        sums = reconstruction_sums(x, x_hat, torch.zeros_like(mask), mask[None])
        self.packed = merge_packed(torch.cat([self.packed[None], sums.pack()]))

    def compute(self) -> Tensor:
        return ReconstructionSums.unpack(self.packed).fve
