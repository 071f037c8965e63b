"""Crosscoder: one set of latents for several sites, of one model or of two.

Axes:    T tokens, D sum of the widths, F latents, S sites.
Sources: Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing". BatchTopK form and the
         artefacts of L1 in model diffing: Minder et al. 2025, arXiv:2504.02922.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError, arg
from lightsae.sae.base import SparseAutoencoder
from lightsae.sae.mechanisms.base import Mechanism
from lightsae.sae.mechanisms.relu import ReLU
from lightsae.sae.refinements import NO_REFINEMENTS, Refinements
from lightsae.sae.sites import Widths


class Crosscoder(SparseAutoencoder):
    """Reads and predicts the sites of data.site, a list, through shared latents. Loss terms as the mechanism's.

    Each site is normalised by itself. The norm of a latent, in sparsity penalties, is the sum of the norms of its
    decoder rows at the sites. With mechanisms that keep rows at norm 1, that is the norm of all sites' rows together.

    Args:
        widths: Given by the data.
        d_sae: Number of latents.
        mechanism: `ReLU` (free decoder norms) or `BatchTopK`, or another, with its settings.
        refinements: Options beside the mechanism.
    """

    def __init__(
        self, widths: Widths, d_sae: int, mechanism: Mechanism, refinements: Refinements = NO_REFINEMENTS
    ) -> None:
        if len(widths.predicted) < 2:
            raise ConfigError(
                f"A Crosscoder reads several sites, and this is one, {next(iter(widths.predicted))}; write a list, for "
                f"example {arg('site', 'data')}: [resid_post.1, resid_post.2], or sites of two models."
            )
        if isinstance(mechanism, ReLU) and mechanism.unit_norm_decoder:
            raise ConfigError("mechanism.decoder_norm", "unit", "a Crosscoder with ReLU takes 'free'")
        super().__init__(widths, d_sae, mechanism, refinements)

    def site_norms(self) -> Float[Tensor, "F S"]:
        """Return the norm of each latent's decoder row at each site, in normalised units."""
        rows = Widths.split(self.W_dec, self.widths.predicted).values()
        return torch.stack([at_site.norm(dim=1) for at_site in rows], dim=1)

    def decoder_norms(self) -> Float[Tensor, " F"]:
        return self.site_norms().sum(1)

    @torch.no_grad()
    def relative_norms(self) -> Float[Tensor, "F S"]:
        """Return each site's share of a latent's decoder norm: 1/S everywhere is shared alike, 1 is only there."""
        norms = self.site_norms()
        return norms / norms.sum(1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)
