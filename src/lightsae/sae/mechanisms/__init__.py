"""Sparsity mechanisms, one a file."""

from lightsae.sae.mechanisms.base import Encoding, Mechanism
from lightsae.sae.mechanisms.batch_topk import BatchTopK
from lightsae.sae.mechanisms.relu import ReLU
from lightsae.sae.mechanisms.topk import TopK

MECHANISMS: dict[str, type[Mechanism]] = {"ReLU": ReLU, "TopK": TopK, "BatchTopK": BatchTopK}

__all__ = ["MECHANISMS", "BatchTopK", "Encoding", "Mechanism", "ReLU", "TopK"]
