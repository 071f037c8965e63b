"""What is interpreted: the latents of an SAE, or the raw neurons of the site that it reads.

Axes: T tokens, D width of what is read, F features.
"""

from abc import ABC, abstractmethod
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
        latents = self.encode(activations)
        fires = (latents.values > 0) & (latents.values > least[latents.indices])
        return latents.pattern.token_of[fires], latents.indices[fires], latents.values[fires]

    @torch.no_grad()
    def nearly(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"] | None:
        return self.sae.pre_activations(self._read(activations))

    def _read(self, activations: Mapping[SiteRef, Tensor]) -> Tensor:
        return read_sites(activations, self.sae.widths.read)


class _DenseFeatures(ABC):
    """Features whose excess over 0 is cheaper to have densely."""

    @abstractmethod
    def excess(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"]:
        """Return by how much each feature fires; below 0 it does not."""

    def encode(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> SparseLatents:
        return SparseLatents.from_dense(self.excess(activations).clamp_min(0))

    def above(
        self, activations: Mapping[SiteRef, Float[Tensor, "T _"]], least: Float[Tensor, " F"]
    ) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"]]:
        excess = self.excess(activations)
        tokens, features = (excess > least).nonzero(as_tuple=True)
        return tokens, features, excess[tokens, features]

    def nearly(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"] | None:
        return None


class NeuronFeatures(_DenseFeatures):
    """The coordinates of the sites that an SAE reads: how far each lies above its mean, in raw units.

    A coordinate has no zero of its own (the residual stream has none at all): it is measured from its mean over a
    sample of the text, and fires where it lies a standard deviation or more above.

    Args:
        sites: As the SAE reads them.
        sample: Activations, (T, D), in the order of `sites`.
    """

    def __init__(self, sites: Mapping[SiteRef, int], sample: Float[Tensor, "T D"]) -> None:
        self.sites, self.mean, self.least = dict(sites), sample.mean(0), sample.std(0)
        self.n_features = sum(sites.values())

    def excess(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"]:
        above = read_sites(activations, self.sites).float() - self.mean
        return torch.where(above >= self.least, above, 0)


def read_sites(activations: Mapping[SiteRef, Float[Tensor, "T _"]], sites: Mapping[SiteRef, int]) -> Tensor:
    """Return the activations at some sites, (T, D), side by side."""
    return Widths.join(activations, sites)


class RandomFeatures(_DenseFeatures):
    """Random directions at the sites that an SAE reads, each firing about as often as its latents do.

    The floor for labels: what a rule finds in directions that were never learned. Feature i fires by how far the
    projection of the activation on its direction exceeds a threshold, which `calibrate` sets so that it fires on its
    share of a sample.

    Args:
        sites: As the SAE reads them.
        n_features: How many.
        generator: Draws the directions.
    """

    def __init__(self, sites: Mapping[SiteRef, int], n_features: int, generator: torch.Generator) -> None:
        self.sites, self.n_features = dict(sites), n_features
        drawn = torch.randn(n_features, sum(sites.values()), generator=generator)
        self.directions = torch.nn.functional.normalize(drawn, dim=1)
        self.thresholds = torch.zeros(n_features)

    @torch.no_grad()
    def calibrate(self, sample: Float[Tensor, "T D"], frequencies: Float[Tensor, " F"]) -> None:
        """Set the thresholds so that feature i fires on the share `frequencies[i]` of a sample's tokens."""
        self.directions, self.thresholds = (t.to(sample.device) for t in (self.directions, self.thresholds))
        ordered = (sample.float() @ self.directions.T).sort(dim=0).values
        places = ((1 - frequencies.to(sample.device)) * (len(ordered) - 1)).long()
        self.thresholds = ordered.gather(0, places[None])[0]

    def excess(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"]:
        return read_sites(activations, self.sites).float() @ self.directions.T - self.thresholds
