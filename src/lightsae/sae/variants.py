"""The variants by the names that users write: `--model.sae NAME`."""

from lightsae.sae.base import SparseAutoencoder
from lightsae.sae.crosscoder import Crosscoder
from lightsae.sae.matryoshka import Matryoshka
from lightsae.sae.plain import BatchTopK, Gated, JumpReLU, ReLU, TopK
from lightsae.sae.transcoder import Transcoder

VARIANTS: dict[str, type[SparseAutoencoder]] = {
    kind.__name__: kind for kind in (ReLU, TopK, BatchTopK, JumpReLU, Gated, Matryoshka, Transcoder, Crosscoder)
}
