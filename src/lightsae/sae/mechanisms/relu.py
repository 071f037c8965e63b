"""ReLU with an L1 penalty, in the two forms that were published.

Axes:    T tokens, D width, F dictionary size.
Source:  free decoder norms: Anthropic, "Circuits Updates - April 2024" (training SAEs). Unit norms: Bricken et al.
         2023, "Towards Monosemanticity", app. "Sparse autoencoder training".
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae.mechanisms.base import Mechanism
from lightsae.sae.sites import Widths
from lightsae.sae.usage import LatentUsage

if TYPE_CHECKING:
    from lightsae.sae.base import SAEOutput, SparseAutoencoder

DecoderNorm = Literal["free", "unit"]


class ReLUMechanism(Mechanism):
    """f = ReLU(pre). Terms: `mse` and `l1`.

    `free`: pre = x W_enc + b_enc; mse = E sum_D e^2; l1 = E sum_i f_i |d_i|. Scaling a row of the decoder up and its
    latent down changes no term, so that the norm needs no constraint.
    `unit`: pre = (x - b_dec) W_enc + b_enc; mse = E mean_D e^2; l1 = E sum_i f_i; |d_i| = 1.

    Args:
        decoder_norm: Which of the two forms.
    """

    default_warm_up: ClassVar[Mapping[str, float]] = {"l1": 0.05}

    def __init__(self, decoder_norm: DecoderNorm = "free") -> None:
        super().__init__()
        self.unit_norm_decoder = self.centres_input = decoder_norm == "unit"
        self.initial_decoder_norm = 1.0 if self.unit_norm_decoder else 0.1
        self.decoder_norm = decoder_norm

    @property
    def default_coefficients(self) -> Mapping[str, float]:  # type: ignore[override]
        return {"mse": 1.0, "l1": 3.5e-3 if self.unit_norm_decoder else 5.0}

    def check(self, widths: Widths, d_sae: int) -> None:
        if self.decoder_norm not in ("free", "unit"):
            raise ConfigError(f"model.sae.decoder_norm is {self.decoder_norm!r}; write 'free' or 'unit'.")

    def latents(
        self,
        x: Float[Tensor, "T D"],
        centre: Float[Tensor, " D"] | None,
        W_enc: Float[Tensor, "D F"],
        b_enc: Float[Tensor, " F"],
    ) -> Tensor:
        bias = b_enc
        if centre is not None:
            # The value of (x - centre) W_enc + b_enc. Written so that the gradient of `centre` is one vector-matrix
            # product, not a full one, and that a large mean is subtracted before the product, not after it.
            fixed = centre.detach()
            x = x - fixed
            bias = b_enc + (fixed - centre) @ W_enc
        return torch.addmm(bias, x, W_enc).relu()

    def loss_terms(
        self, sae: "SparseAutoencoder", target: Float[Tensor, "T O"], output: "SAEOutput", usage: LatentUsage
    ) -> dict[str, Tensor]:
        latents = output.latents
        assert isinstance(latents, Tensor)
        squared = (target - output.x_hat_normalised).square().sum(1).mean()
        # Sum over tokens first: one pass over (T, F), and the norms meet a vector only.
        firing = latents.sum(0, dtype=torch.float32 if latents.dtype == torch.bfloat16 else None) / len(latents)
        if self.unit_norm_decoder:
            return {"mse": squared / target.shape[1], "l1": firing.sum()}
        return {"mse": squared, "l1": firing @ sae.W_dec.norm(dim=1)}
