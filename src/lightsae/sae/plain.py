"""The plain structure under the names that users write: `--model.sae TopK`."""

import math

from lightsae.sae.base import SparseAutoencoder
from lightsae.sae.mechanisms.relu import DecoderNorm, ReLUMechanism
from lightsae.sae.mechanisms.topk import TopKMechanism
from lightsae.sae.sites import Widths


class ReLU(SparseAutoencoder):
    """ReLU and L1. Loss terms: `mse`, `l1`. Raise the coefficient of `l1` for fewer latents a token.

    Args:
        widths: Given by the data.
        d_sae: Number of latents.
        decoder_norm: `free`: decoder rows of any norm, the norm in the penalty (Anthropic, April 2024). `unit`: rows of
            norm 1 (Bricken et al. 2023).
    """

    def __init__(self, widths: Widths, d_sae: int, decoder_norm: DecoderNorm = "free") -> None:
        self.decoder_norm = decoder_norm
        super().__init__(widths, d_sae, ReLUMechanism(decoder_norm))

    @property
    def default_lr(self) -> float:
        return 1e-3 if self.decoder_norm == "unit" else 5e-5


class TopK(SparseAutoencoder):
    """Each token keeps its k largest latents (Gao et al. 2024). Loss terms: `mse`, `auxk`.

    Args:
        widths: Given by the data.
        d_sae: Number of latents.
        k: Latents kept for each token.
        k_aux: Dead latents that learn from the error of a token; None: the power of two nearest to half the width.
    """

    adam_eps = 6.25e-10

    def __init__(self, widths: Widths, d_sae: int, k: int, k_aux: int | None = None) -> None:
        self.k, self.k_aux = k, k_aux
        super().__init__(widths, d_sae, TopKMechanism(k, k_aux))

    @property
    def default_lr(self) -> float:
        # The paper's scaling: 2e-4 at 2^14 latents, falling with the root of their number.
        return 2e-4 * math.sqrt(2**14 / self.d_sae)


VARIANTS: dict[str, type[SparseAutoencoder]] = {"ReLU": ReLU, "TopK": TopK}
