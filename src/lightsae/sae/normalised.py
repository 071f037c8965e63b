"""Between raw activations and the units that an SAE computes in.

Axes:    T tokens, D width read (d_in), O width predicted (d_out).
Units:   normalised = raw * `input_scale` (what is read) or raw * `output_scale` (what is predicted); with `token_norm`,
         after each token was normalised by itself.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightsae.errors import ActivationError, ConfigError, arg
from lightsae.sae.initialise import Normalisation, measure_scale
from lightsae.sae.refinements import Refinements
from lightsae.sae.sites import SiteRef, Widths
from lightsae.sae.token_norm import TokenFrame


class Normalised(nn.Module):
    """What reads and predicts raw activations, and computes in normalised ones.

    Args:
        widths: Sites that are read and predicted, with their widths.
        refinements: Says by `token_norm` whether each token is normalised by itself.
    """

    input_scale: Tensor
    output_scale: Tensor

    def __init__(self, widths: Widths, refinements: Refinements) -> None:
        super().__init__()
        self.widths, self.refinements = widths, refinements
        self.register_buffer("input_scale", torch.ones(len(widths.read)))
        self.register_buffer("output_scale", torch.ones(len(widths.predicted)))

    @property
    def d_in(self) -> int:
        return self.widths.d_in

    @property
    def d_out(self) -> int:
        return self.widths.d_out

    def token_units(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch 1"] | None:
        """Return how long a token's own unit is, by which what a latent adds to it is multiplied.

        None without `token_norm`, where all tokens have the same.
        """
        frame = self._frame(x)
        return None if frame is None else frame.unit

    def in_frames(self, sample: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Mapping[SiteRef, Float[Tensor, "T _"]]:
        """Return activations at sites as the scales are measured on: with `token_norm`, each token by itself."""
        kind = self.refinements.token_norm
        if kind is None:
            return sample
        return {site: TokenFrame.of(values, kind).into(values) for site, values in sample.items()}

    def _measure_scales(self, sample: Mapping[SiteRef, Tensor], normalisation: Normalisation) -> None:
        """Set the scales by a sample `in_frames`."""
        for site, values in sample.items():
            if not bool(values.any()):
                raise ActivationError(
                    f"{site} is zero on all {len(values)} tokens of the sample: nothing to learn from."
                )
        self.input_scale.copy_(torch.stack([measure_scale(sample[s], normalisation) for s in self.widths.read]))
        self.output_scale.copy_(torch.stack([measure_scale(sample[s], normalisation) for s in self.widths.predicted]))

    def _read(self, x: Tensor) -> tuple[Tensor, TokenFrame | None]:
        """Return raw activations normalised, and what each token was normalised by."""
        frame = self._frame(x)
        return self._scaled(x if frame is None else frame.into(x)), frame

    def _normalised(self, x: Tensor) -> Tensor:
        return self._read(x)[0]

    def _scaled(self, x: Tensor) -> Tensor:
        return x.to(self.input_scale.dtype) * per_column(self.input_scale, self.widths.read)

    def _output_factor(self) -> Tensor:
        return per_column(self.output_scale, self.widths.predicted)

    def _frame(self, x: Tensor) -> TokenFrame | None:
        kind = self.refinements.token_norm
        return None if kind is None else TokenFrame.of(x, kind)

    def _frame_for(self, x: Tensor | None) -> TokenFrame | None:
        if x is not None:
            return self._frame(x)
        if (kind := self.refinements.token_norm) is not None:
            raise ConfigError(
                f"{arg('x')} is missing: with token_norm {kind!r} each token has a unit of its own; give the raw "
                "activations that were encoded."
            )
        return None


def per_column(scales: Float[Tensor, " S"], widths: Mapping[SiteRef, int]) -> Float[Tensor, " _"]:
    """Spread one factor per site over the site's columns; one site needs no spreading."""
    if len(widths) == 1:
        return scales
    return torch.cat([scale.expand(width) for scale, width in zip(scales, widths.values(), strict=True)])
