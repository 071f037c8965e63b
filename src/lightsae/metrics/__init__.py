"""Figures over all tokens seen: tensors in, numbers out."""

from lightsae.metrics.grouped import GroupedReconstruction
from lightsae.metrics.language_model import (
    counted_targets,
    cross_entropy_recovered,
    token_cross_entropy,
    token_kl_divergence,
)
from lightsae.metrics.pooled import LatentFrequencies, PooledMetric, TokenMean
from lightsae.metrics.reconstruction import FractionOfVarianceExplained, ReconstructionStatistics

__all__ = [
    "FractionOfVarianceExplained",
    "GroupedReconstruction",
    "LatentFrequencies",
    "PooledMetric",
    "ReconstructionStatistics",
    "TokenMean",
    "counted_targets",
    "cross_entropy_recovered",
    "token_cross_entropy",
    "token_kl_divergence",
]
