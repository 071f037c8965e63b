"""What a sparsity mechanism gives: latents from pre-activations, loss terms, and its demands on the decoder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from lightsae.sae.sites import Widths
from lightsae.sae.sparse_ops import Latents
from lightsae.sae.usage import LatentUsage

if TYPE_CHECKING:
    from lightsae.sae.base import SAEOutput, SparseAutoencoder


class Mechanism(nn.Module):
    """Makes latents sparse, in its own way, inside any structure.

    Attributes:
        unit_norm_decoder: Decoder rows are kept at norm 1.
        centres_input: `b_dec` is subtracted from the input before encoding.
        initial_decoder_norm: Norm of the decoder rows at the start.
        default_coefficients: What weighs each loss term where the user says nothing.
        default_warm_up: The share of the run over which a term's default coefficient rises from 0.
    """

    unit_norm_decoder: bool = True
    centres_input: bool = True
    initial_decoder_norm: float = 1.0
    default_coefficients: ClassVar[Mapping[str, float]] = {"mse": 1.0}
    default_warm_up: ClassVar[Mapping[str, float]] = {}

    def check(self, widths: Widths, d_sae: int) -> None:
        """Raise a ConfigError where a setting does not fit the widths."""

    def latents(
        self,
        x: Float[Tensor, "T D"],
        centre: Float[Tensor, " D"] | None,
        W_enc: Float[Tensor, "D F"],
        b_enc: Float[Tensor, " F"],
    ) -> Latents:
        """Return the latents of normalised activations."""
        raise NotImplementedError

    def loss_terms(
        self, sae: "SparseAutoencoder", target: Float[Tensor, "T O"], output: "SAEOutput", usage: LatentUsage
    ) -> dict[str, Tensor]:
        """Return the unweighted terms of the loss in normalised units."""
        raise NotImplementedError
