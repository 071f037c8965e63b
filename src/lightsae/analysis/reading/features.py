"""What is interpreted: the latents of an SAE, or whatever else says where features fire (see `calibrated`).

Axes: T tokens, F features.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightsae.sae import SiteRef, SparseAutoencoder, Widths
from lightsae.sae.sparse_ops import SparseLatents


@runtime_checkable
class FeatureSource(Protocol):
    """Turns activations into the firings of features."""

    n_features: int

    def encode(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> SparseLatents:
        """Return which features fire on each token, and how strongly."""

    def above(
        self, activations: Mapping[SiteRef, Float[Tensor, "T _"]], least: Float[Tensor, " F"]
    ) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"]]:
        """Return the tokens, ascending, the features and the values of the firings that exceed `least`."""

    def nearly(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"] | None:
        """Return a score of how near each feature is to firing; None if there is no such thing."""


class SAEFeatures:
    """The latents of an SAE, in its normalised units; they are read, never trained."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae = sae.eval()
        self.n_features = sae.d_sae

    @torch.no_grad()
    def encode(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> SparseLatents:
        return self.sae.encode_sparse(self._read(activations))

    def above(
        self, activations: Mapping[SiteRef, Float[Tensor, "T _"]], least: Float[Tensor, " F"]
    ) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"]]:
        return firings_above(self.encode(activations), least)

    @torch.no_grad()
    def nearly(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"] | None:
        return self.sae.pre_activations(self._read(activations))

    def _read(self, activations: Mapping[SiteRef, Tensor]) -> Tensor:
        return Widths.join(activations, self.sae.widths.read)


def firings_above(
    latents: SparseLatents, least: Float[Tensor, " F"]
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Return the tokens, ascending, the features and the values of the firings that exceed `least`."""
    fires = (latents.values > 0) & (latents.values > least[latents.indices])
    return latents.pattern.token_of[fires], latents.indices[fires], latents.values[fires]
