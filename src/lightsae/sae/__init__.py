"""SAEs: pure modules, without Lightning and without a language model."""

from lightsae.sae.base import SparseAutoencoder
from lightsae.sae.crosscoder import Crosscoder
from lightsae.sae.initialise import NORMALISATIONS
from lightsae.sae.matryoshka import Matryoshka
from lightsae.sae.mechanisms import MECHANISMS, Mechanism
from lightsae.sae.output import SAEOutput
from lightsae.sae.refinements import Refinements
from lightsae.sae.sites import SiteRef, Widths
from lightsae.sae.sparse_ops import SparseLatents
from lightsae.sae.transcoder import Transcoder
from lightsae.sae.usage import LatentUsage
from lightsae.sae.variants import VARIANTS, BatchTopK, Gated, GroupMax, JumpReLU, ReLU, TopK

__all__ = [
    "MECHANISMS",
    "NORMALISATIONS",
    "VARIANTS",
    "BatchTopK",
    "Crosscoder",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "LatentUsage",
    "Matryoshka",
    "Mechanism",
    "ReLU",
    "Refinements",
    "SAEOutput",
    "SiteRef",
    "SparseAutoencoder",
    "SparseLatents",
    "TopK",
    "Transcoder",
    "Widths",
]
