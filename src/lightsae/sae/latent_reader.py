"""The latents of a few features, as cheaply as the mechanism allows.

Axes:    T tokens, D width read, n features asked for.

In ReLU, JumpReLU and Gated a latent depends on its own encoder column alone, so that only the columns asked for are
multiplied. If latents compete (TopK and its family), and with a second step or pruning, all are encoded, once.
"""

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightsae.sae import SparseAutoencoder
from lightsae.sae.normalised import per_column
from lightsae.sae.token_norm import TokenFrame

# Pre-activations of all latents are in memory for this many tokens at a time.
_TOKENS_AT_ONCE = 4096
# Of the norms that are multiplied: eight times the precision of float32.
_PRECISION = 1e-6


def computed_alone(sae: SparseAutoencoder) -> bool:
    """Return whether a latent needs its own column only."""
    refined = sae.refinements.second_step or sae.refinements.prune is not None
    return not sae.mechanism.competes and not refined


def rounding(sae: SparseAutoencoder, feature: int) -> float:
    """Return how far two ways to work out a latent may lie apart, in latent units, however small it is.

    A product's rounding error goes with the norms of what is multiplied: the column's, and the root of the width for
    the normalised activation.
    """
    return _PRECISION * math.sqrt(sae.d_in) * float(sae.W_enc.detach()[:, feature].norm())


class LatentReader:
    """Turns what an SAE reads into the latents of `features`, in normalised units; no gradient.

    Attributes:
        alone: Whether latents are computed from their own columns; otherwise each call encodes all, once.
    """

    def __init__(self, sae: SparseAutoencoder, features: list[int], device: torch.device | str) -> None:
        self.alone = computed_alone(sae)
        if not self.alone:
            ready = sae.W_enc.device == torch.device(device) and not sae.training
            # A copy if it has to be changed: the user's stays as it is.
            self._sae = sae if ready else copy.deepcopy(sae).eval().to(device)
            self._features = torch.tensor(features, device=device)
            return
        self._token_norm = sae.refinements.token_norm
        self._scale = per_column(sae.input_scale, sae.widths.read).to(device)
        centre = sae.centre
        self._centre = None if centre is None else centre.detach().to(device)
        self._columns = sae.W_enc.detach()[:, features].contiguous().to(device)
        self._bias = sae.b_enc.detach()[features].to(device)
        mechanism = copy.deepcopy(sae.mechanism).eval()
        for name, parameter in list(mechanism.named_parameters()):
            # Thresholds, gains: one entry per latent.
            setattr(mechanism, name, nn.Parameter(parameter.detach()[features], requires_grad=False))
        self._mechanism = mechanism.to(device)

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T n"]:
        if self.alone:
            if self._token_norm is not None:
                x = TokenFrame.of(x, self._token_norm).into(x)
            x = x.to(self._columns.dtype) * self._scale
            if self._centre is not None:
                x = x - self._centre
            latents = self._mechanism.encode(x, None, self._columns, self._bias).latents
            assert isinstance(latents, Tensor)
            return latents
        return torch.cat([self._encoded(part) for part in x.split(_TOKENS_AT_ONCE)])

    def _encoded(self, x: Tensor) -> Tensor:
        sparse = self._sae.encode_sparse(x)
        is_feature = sparse.indices[:, None] == self._features
        latents = sparse.values.new_zeros(len(x), len(self._features))
        return latents.index_add_(0, sparse.pattern.token_of, sparse.values[:, None] * is_feature)
