"""Normalisation of each token by itself, before the SAE's own scales; undone in what is predicted.

    layer_norm    u = (x - mean(x)) / (std(x) + 1e-5)     x_hat = u_hat std(x) + mean(x)
    rescale       u = x sqrt(D) / |x|                     x_hat = u_hat |x| / sqrt(D)

The standard deviation is the unbiased one, and the 1e-5 is not added again in the way back, as both sources have it.
Since every token has factors of its own, they cannot be worked into the weights.

Axes:    T tokens, D width.
Sources: OpenAI's sparse_autoencoder (Gao et al. 2024, arXiv:2406.04093); `normalize_activations` of SAELens, where
         they are called `layer_norm` and `constant_norm_rescale`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

TokenNorm = Literal["layer_norm", "rescale"]
_EPSILON = 1e-5
# Of a float32: the square root of what is smaller has no finite slope worth having.
_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class TokenFrame:
    """Where each token's activations lie, and how long one unit is there.

    Attributes:
        shift: What is subtracted from the token, in raw units; 0 with `rescale`.
        factor: What is then multiplied.
        unit: What one unit of u is in raw units: 1 / factor, but for the epsilon. 0 for a token that is the same in
            every coordinate (`layer_norm`) or zero (`rescale`): it is predicted as it came.
    """

    shift: Float[Tensor, "*batch 1"]
    factor: Float[Tensor, "*batch 1"]
    unit: Float[Tensor, "*batch 1"]

    @classmethod
    def of(cls, x: Float[Tensor, "*batch D"], kind: TokenNorm) -> "TokenFrame":
        """Measure raw activations; in float32 at least, since the mean may be large."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if kind == "layer_norm":
            shift = x.mean(-1, keepdim=True)
            unit = _root((x - shift).square().sum(-1, keepdim=True) / (x.shape[-1] - 1))
            return cls(shift, 1 / (unit + _EPSILON), unit)
        unit = _root(x.square().mean(-1, keepdim=True))
        return cls(torch.zeros_like(unit), torch.where(unit > 0, 1 / unit.clamp_min(math.sqrt(_SMALLEST)), 0), unit)

    def into(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Return u for raw activations x of the same tokens."""
        return (x - self.shift) * self.factor

    def out_of(self, u: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Return the raw activations that u stands for."""
        return u * self.unit + self.shift

    def detach(self) -> "TokenFrame":
        """Return it without the graph."""
        return TokenFrame(self.shift.detach(), self.factor.detach(), self.unit.detach())


def _root(square: Tensor) -> Tensor:
    """Return the square root, with a slope of 0 instead of an infinite one at 0."""
    return torch.where(square > _SMALLEST, square.clamp_min(_SMALLEST).sqrt(), 0)
