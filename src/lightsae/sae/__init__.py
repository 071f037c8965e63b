"""Dictionaries: pure modules, without Lightning and without a language model."""

from lightsae.sae.base import NORMALISATIONS, SAEOutput, SparseAutoencoder
from lightsae.sae.plain import VARIANTS, ReLU, TopK
from lightsae.sae.sites import SiteRef, Widths
from lightsae.sae.sparse_ops import SparseLatents
from lightsae.sae.usage import LatentUsage

__all__ = [
    "NORMALISATIONS",
    "VARIANTS",
    "LatentUsage",
    "ReLU",
    "SAEOutput",
    "SiteRef",
    "SparseAutoencoder",
    "SparseLatents",
    "TopK",
    "Widths",
]
