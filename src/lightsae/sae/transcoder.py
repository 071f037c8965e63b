"""Transcoder: reads one site and predicts another, such as a module's output from its input.

Axes:    T tokens, D width read, O width predicted, F latents.
Sources: Dunefsky et al. 2024, arXiv:2406.11944. Skip connection: Paulo et al. 2025, arXiv:2501.18823.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightsae.errors import ConfigError, arg
from lightsae.sae.base import SparseAutoencoder
from lightsae.sae.initialise import geometric_median, random_like
from lightsae.sae.mechanisms.base import Mechanism
from lightsae.sae.refinements import NO_REFINEMENTS, Refinements
from lightsae.sae.sites import Widths
from lightsae.sae.sparse_ops import Latents


class Transcoder(SparseAutoencoder):
    """Reads data.site and predicts data.target_site, with any mechanism. Loss terms as the mechanism's.

    The encoder sees x - input_centre, a fixed vector: the geometric median of what is read.

    Args:
        widths: Given by the data.
        d_sae: Number of latents.
        mechanism: `ReLU`, `TopK`, `BatchTopK`, `GroupMax`, `JumpReLU` or `Gated`, with its settings.
        skip: Add a linear map of the input to the prediction (skip transcoder).
        refinements: Options beside the mechanism.
    """

    predicts_another_site = True
    input_centre: Tensor

    def __init__(
        self,
        widths: Widths,
        d_sae: int,
        mechanism: Mechanism,
        skip: bool = False,
        refinements: Refinements = NO_REFINEMENTS,
    ) -> None:
        if widths.read == widths.predicted:
            raise ConfigError(
                f"A Transcoder predicts another site than it reads; write {arg('target_site', 'data')}, for example "
                f"{arg('site', 'data')} mlp_in.2 and {arg('target_site', 'data')} mlp_out.2 (in "
                f"{arg('saes', 'model')}: site and target_site of the entry)."
            )
        self.skip = skip
        super().__init__(widths, d_sae, mechanism, refinements)

    def build(self) -> None:
        self.register_buffer("input_centre", torch.zeros(self.widths.d_in))
        self.W_skip = nn.Parameter(torch.zeros(self.widths.d_in, self.widths.d_out)) if self.skip else None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        super().reset_parameters(generator)
        if self.W_skip is not None:
            nn.init.zeros_(self.W_skip)

    def _draw_directions(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        # What is read and what is predicted share no directions.
        return random_like(self.W_enc.T, generator), random_like(self.W_dec, generator)

    def _start_centres(self, read: Float[Tensor, "T D"], predicted: Float[Tensor, "T O"]) -> None:
        super()._start_centres(read, predicted)
        self.input_centre.copy_(geometric_median(read))

    @property
    def centre(self) -> Float[Tensor, " D"]:
        return self.input_centre

    def decode_frozen(self, latents: Latents, x: Float[Tensor, "T D"]) -> Float[Tensor, "T O"]:
        predicted = super().decode_frozen(latents, x)
        return predicted if self.W_skip is None else predicted + (x - self.input_centre) @ self.W_skip.detach()

    def _decoded(self, latents: Latents, x: Tensor) -> Tensor:
        predicted = super()._decoded(latents, x)
        return predicted if self.W_skip is None else torch.addmm(predicted, x - self.input_centre, self.W_skip)
