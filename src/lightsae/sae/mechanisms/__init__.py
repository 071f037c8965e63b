"""Sparsity mechanisms, one a file."""

from lightsae.sae.mechanisms.base import Encoding, Mechanism
from lightsae.sae.mechanisms.batch_topk import BatchTopK
from lightsae.sae.mechanisms.gated import Gated
from lightsae.sae.mechanisms.jumprelu import JumpReLU
from lightsae.sae.mechanisms.relu import ReLU
from lightsae.sae.mechanisms.topk import TopK

MECHANISMS: dict[str, type[Mechanism]] = {kind.__name__: kind for kind in (ReLU, TopK, BatchTopK, JumpReLU, Gated)}

__all__ = ["MECHANISMS", "BatchTopK", "Encoding", "Gated", "JumpReLU", "Mechanism", "ReLU", "TopK"]
