"""What a forward pass of an SAE gives.

Axes:    T tokens, D width read, O width predicted, F latents.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightsae.sae.sparse_ops import Latents
from lightsae.sae.token_norm import TokenFrame


@dataclass(frozen=True)
class SAEOutput:
    """What a forward pass gives.

    Attributes:
        x_normalised: What was read, in the units of the losses, (T, D).
        latents: Dense (T, F) or sparse, as the mechanism makes them, in normalised units.
        x_hat_normalised: Prediction in the units of the losses, (T, O).
        output_scale: One factor per column of the prediction (or one for all): raw * scale = normalised.
        frame: Where tokens are normalised by themselves, what was subtracted and multiplied before that scale.
        pre: Pre-activations (T, F), from mechanisms whose loss looks at them.
        first: Latents of the first of two steps, where there are two.
    """

    x_normalised: Float[Tensor, "T D"]
    latents: Latents
    x_hat_normalised: Float[Tensor, "T O"]
    output_scale: Float[Tensor, " _"]
    pre: Float[Tensor, "T F"] | None = None
    first: Latents | None = None
    frame: TokenFrame | None = None

    @property
    def x_hat(self) -> Float[Tensor, "T O"]:
        """The prediction in raw units."""
        x_hat = self.x_hat_normalised / self.output_scale
        return x_hat if self.frame is None else self.frame.out_of(x_hat)

    def normalised(self, target: Float[Tensor, "T O"]) -> Float[Tensor, "T O"]:
        """Return raw activations that are to be predicted of the same tokens in the units of the losses."""
        return (target if self.frame is None else self.frame.into(target)) * self.output_scale

    def detach(self) -> "SAEOutput":
        """Return what metrics need, without the graph."""
        return SAEOutput(
            self.x_normalised,
            self.latents.detach(),
            self.x_hat_normalised.detach(),
            self.output_scale,
            frame=None if self.frame is None else self.frame.detach(),
        )

    def dense_latents(self) -> Float[Tensor, "T F"]:
        return self.latents if isinstance(self.latents, Tensor) else self.latents.to_dense()
