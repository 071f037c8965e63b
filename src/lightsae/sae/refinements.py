"""Ideas of 2026 that fit any variant, each off by default where it did not win; see docs/decisions.md.

Axes:    T tokens, D width, F latents, N non-zero latents.
Sources: aligned training: arXiv:2605.18629. Second step: Gregor & LeCun 2010, "Learning Fast Approximations of Sparse
         Coding". Tilted mean: tilted risk, arXiv:2411.00743. Normalised tokens: see `token_norm`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError, arg
from lightsae.sae.ranks import over_batch, softmax_over_batch
from lightsae.sae.sites import Widths
from lightsae.sae.sparse_ops import Latents, SparseLatents, as_sparse, row_products
from lightsae.sae.token_norm import TokenNorm


@dataclass(frozen=True)
class Refinements:
    """Options beside the sparsity mechanism.

    Args:
        aligned: Keep the product of each encoder column with its decoder row at 1 (aligned training).
        second_step: Encode twice: the second time x + second_step * (x - x_hat) in place of x; 0: once. 0.3 is usual.
        tilt: Weigh each token of the squared error by exp(tilt * error / mean error); 0: all alike.
        prune: At inference, drop a latent where what the others leave to it falls below this, in normalised units;
            null: none.
        centre_input: Whether `b_dec` is subtracted from the input before encoding; null: as the mechanism's source has
            it.
        token_norm: Normalise each token by itself before all else, and undo it in the prediction: `layer_norm` (mean 0,
            standard deviation 1) or `rescale` (norm sqrt(D)); null: not. One site only.
    """

    aligned: bool = False
    second_step: float = 0.0
    tilt: float = 0.0
    prune: float | None = None
    centre_input: bool | None = None
    token_norm: TokenNorm | None = None

    def check(self, widths: Widths, mechanism: str, refused: Sequence[str] = ()) -> None:
        """Raise a ConfigError where an option does not fit: the widths, or a mechanism that refuses those named."""
        for field in fields(self):
            if field.name in refused and getattr(self, field.name) != field.default:
                raise ConfigError(field.name, getattr(self, field.name), f"{mechanism} does without; leave it out")
        if self.second_step < 0:
            raise ConfigError("second_step", self.second_step, "write 0 or more")
        if self.token_norm not in (None, *get_args(TokenNorm)):
            raise ConfigError("token_norm", self.token_norm, f"write one of {', '.join(get_args(TokenNorm))}, or null")
        if self.token_norm is not None and len(widths.read) > 1:
            raise ConfigError("token_norm", self.token_norm, "it takes an SAE of one site; leave it out")
        if self.token_norm == "layer_norm" and widths.d_in < 2:
            raise ConfigError("token_norm", self.token_norm, "one number has no standard deviation; leave it out")
        if widths.read == widths.predicted:
            return
        for field in fields(self):
            if field.name != "tilt" and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"{arg(field.name)} is {getattr(self, field.name)}, but it needs an SAE that predicts what it "
                    "reads; leave it out."
                )

    def mean(self, errors: Float[Tensor, " T"]) -> Float[Tensor, ""]:
        """Return the mean over tokens, tilted towards those with large errors where that is asked for."""
        if not self.tilt:
            return errors.mean()
        fixed = errors.detach()
        mean = over_batch(fixed.mean(), "mean").clamp_min(torch.finfo(fixed.dtype).tiny)
        return softmax_over_batch(self.tilt * fixed / mean) @ errors

    def pruned(
        self, latents: Latents, residual: Float[Tensor, "T D"], W_dec: Float[Tensor, "F D"], threshold: float
    ) -> SparseLatents:
        """Drop each latent whose leave-one-out share <x - x_hat, d_i> + f_i |d_i|^2 falls below the threshold."""
        sparse = as_sparse(latents)
        with torch.no_grad():
            own = sparse.values * W_dec.square().sum(1)[sparse.indices]
            kept = row_products(residual, W_dec, sparse.pattern) + own >= threshold
        return SparseLatents(torch.where(kept, sparse.values, 0), sparse.pattern)


NO_REFINEMENTS = Refinements()


@torch.no_grad()
def align(W_enc: Float[Tensor, "D F"], W_dec: Float[Tensor, "F D"]) -> None:
    """Move each encoder column, in place and along its decoder row, to where their product is 1."""
    product, square = (W_enc.T * W_dec).sum(1), W_dec.square().sum(1)
    step = (1 - product) / square.clamp_min(torch.finfo(W_dec.dtype).tiny)
    W_enc.add_((step[:, None] * W_dec).T)
