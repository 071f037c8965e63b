"""What every dictionary is: an encoder, a decoder, scales, and a mechanism that makes the latents sparse.

Axes:    T tokens, D width read (d_in), O width predicted (d_out), F dictionary size (d_sae).
Units:   inputs and outputs of the public methods are raw activations. Inside, and in the losses, activations are
         normalised: multiplied by `input_scale` (what is read) or `output_scale` (what is predicted).
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightsae.errors import ActivationError, ConfigError
from lightsae.sae.initialise import geometric_median
from lightsae.sae.mechanisms.base import Mechanism
from lightsae.sae.sites import SiteRef, Widths
from lightsae.sae.sparse_ops import Latents, SparseLatents, decode
from lightsae.sae.usage import LatentUsage

Normalisation = str
MEDIAN_TOKENS = 16384
NORMALISATIONS = ("sqrt_d", "unit", "none")


@dataclass(frozen=True)
class SAEOutput:
    """What a forward pass gives.

    Attributes:
        x_normalised: What was read, in the units of the losses, (T, D).
        latents: Dense (T, F) or sparse, as the mechanism makes them, in normalised units.
        x_hat_normalised: Prediction in the units of the losses, (T, O).
        output_scale: One factor a column of the prediction (or one for all): raw * scale = normalised.
    """

    x_normalised: Float[Tensor, "T D"]
    latents: Latents
    x_hat_normalised: Float[Tensor, "T O"]
    output_scale: Float[Tensor, " _"]

    @property
    def x_hat(self) -> Float[Tensor, "T O"]:
        """The prediction in raw units."""
        return self.x_hat_normalised / self.output_scale

    def detach(self) -> "SAEOutput":
        return SAEOutput(self.x_normalised, self.latents.detach(), self.x_hat_normalised.detach(), self.output_scale)

    def dense_latents(self) -> Float[Tensor, "T F"]:
        return self.latents if isinstance(self.latents, Tensor) else self.latents.to_dense()


class SparseAutoencoder(nn.Module):
    """A dictionary with the plain structure: it predicts the activations that it reads.

    x_hat = b_dec + sum_i f_i d_i, where d_i are the rows of `W_dec` and f the latents that the mechanism makes of
    (x - b_dec) W_enc + b_enc (or of x W_enc + b_enc, where the mechanism says so).

    Every constructor argument but `widths` is kept as an attribute of the same name: `settings` reads them off, which
    is what a saved dictionary is rebuilt from.

    Args:
        widths: Sites that are read and predicted, with their widths.
        d_sae: Number of latents.
        mechanism: What makes the latents sparse, with the loss terms that go with it.
    Raises:
        ConfigError: `d_sae` or a setting of the mechanism does not fit.
    """

    adam_betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    adam_eps: ClassVar[float] = 1e-8

    def __init__(self, widths: Widths, d_sae: int, mechanism: Mechanism) -> None:
        super().__init__()
        if d_sae < 1:
            raise ConfigError(f"model.sae.d_sae is {d_sae}; a dictionary has at least 1 latent.")
        mechanism.check(widths, d_sae)
        self.widths, self.d_sae, self.mechanism = widths, d_sae, mechanism
        self.W_dec = nn.Parameter(torch.empty(d_sae, widths.d_out))
        self.W_enc = nn.Parameter(torch.empty(widths.d_in, d_sae))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(widths.d_out))
        self.input_scale: Tensor
        self.output_scale: Tensor
        self.register_buffer("input_scale", torch.ones(len(widths.read)))
        self.register_buffer("output_scale", torch.ones(len(widths.predicted)))
        self.reset_parameters()

    @property
    def default_lr(self) -> float:
        """The learning rate where the user gives none."""
        return 2e-4

    @property
    def d_in(self) -> int:
        return self.widths.d_in

    @property
    def d_out(self) -> int:
        return self.widths.d_out

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments but `widths`; `type(sae)(sae.widths, **sae.settings)` is of the same shape."""
        names = list(inspect.signature(type(self).__init__).parameters)[2:]
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw decoder directions at random, tie the encoder to them, set biases to 0."""
        if not self.W_dec.is_meta:
            # Drawn on the CPU, where the generator lives: the start is the same on every device.
            self.W_dec.copy_(torch.randn(self.W_dec.shape, generator=generator, device="cpu"))
        self.W_dec.mul_(self.mechanism.initial_decoder_norm / self.W_dec.norm(dim=1, keepdim=True))
        self.W_enc.copy_(self.W_dec.T)
        nn.init.zeros_(self.b_enc)
        nn.init.zeros_(self.b_dec)

    @torch.no_grad()
    def start_from(self, sample: Mapping[SiteRef, Float[Tensor, "T _"]], normalisation: Normalisation) -> None:
        """Measure the scales on a sample of raw activations, and start `b_dec` at the sample's geometric median.

        Args:
            sample: Activations of the same tokens at every site, without attention sinks.
            normalisation: "sqrt_d" makes the mean norm sqrt(width), "unit" the mean squared norm 1, "none" keeps raw
                units.

        Raises:
            ActivationError: A site is zero on all tokens.
        """
        for site, values in sample.items():
            if not bool(values.any()):
                raise ActivationError(
                    f"{site} is zero on all {len(values)} tokens of the sample: nothing to learn from."
                )
        self.input_scale.copy_(torch.stack([measure_scale(sample[s], normalisation) for s in self.widths.read]))
        self.output_scale.copy_(torch.stack([measure_scale(sample[s], normalisation) for s in self.widths.predicted]))
        # A median of some thousands of tokens is as good a start as one of all, and each iteration reads them all.
        every = max(1, len(next(iter(sample.values()))) // MEDIAN_TOKENS)
        target = torch.cat([sample[s][::every].float() for s in self.widths.predicted], dim=1)
        self.b_dec.copy_(geometric_median(target * self._output_factor().to(target.device)))
        if not self.mechanism.centres_input:
            # Starts where a centring encoder would: at zero for the median input.
            self.b_enc.copy_(-(self.b_dec @ self.W_enc))

    def encode(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch F"]:
        """Return the latents of raw activations, dense, in normalised units."""
        latents = self._latents(self._normalised(x.reshape(-1, self.d_in)))
        dense = latents if isinstance(latents, Tensor) else latents.to_dense()
        return dense.reshape(*x.shape[:-1], self.d_sae)

    def encode_sparse(self, x: Float[Tensor, "T D"]) -> SparseLatents:
        """Return the latents of raw activations as values and indices, in normalised units."""
        latents = self._latents(self._normalised(x))
        return SparseLatents.from_dense(latents) if isinstance(latents, Tensor) else latents

    def decode(self, latents: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch O"]:
        """Return the raw activations that dense latents stand for."""
        return (latents @ self.W_dec + self.b_dec) / self._output_factor()

    def forward(self, x: Float[Tensor, "T D"]) -> SAEOutput:
        """Encode raw activations and decode them again."""
        x = self._normalised(x)
        latents = self._latents(x)
        return SAEOutput(x, latents, decode(latents, self.W_dec) + self.b_dec, self._output_factor())

    def loss_terms(self, x: Float[Tensor, "T O"], output: SAEOutput, usage: LatentUsage) -> dict[str, Tensor]:
        """Return the named, unweighted terms of the loss for the raw target `x`; each is a scalar."""
        return self.mechanism.loss_terms(self, x * self._output_factor(), output, usage)

    @torch.no_grad()
    def before_step(self) -> None:
        """Prepare the gradients: with unit rows, drop the part along a row, which the next `constrain` would undo."""
        grad = self.W_dec.grad
        if self.mechanism.unit_norm_decoder and grad is not None:
            grad.sub_((grad * self.W_dec).sum(1, keepdim=True) * self.W_dec)

    @torch.no_grad()
    def constrain(self) -> None:
        """Restore what the mechanism demands of the weights; called after each optimiser step."""
        if self.mechanism.unit_norm_decoder:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.W_dec.dtype).tiny))

    def direction(self, latent: int) -> Float[Tensor, " O"]:
        """Return what one unit of a latent adds to the raw activations: d_i / output_scale."""
        return self.W_dec[latent] / self._output_factor()

    def _latents(self, x: Tensor) -> Latents:
        return self.mechanism.latents(x, self.b_dec if self.mechanism.centres_input else None, self.W_enc, self.b_enc)

    def _normalised(self, x: Tensor) -> Tensor:
        return x.to(self.W_enc.dtype) * _per_column(self.input_scale, self.widths.read)

    def _output_factor(self) -> Tensor:
        return _per_column(self.output_scale, self.widths.predicted)


def _per_column(scales: Tensor, widths: Mapping[SiteRef, int]) -> Tensor:
    """Spread one factor a site over the site's columns; one site needs no spreading."""
    if len(widths) == 1:
        return scales
    return torch.cat([scale.expand(width) for scale, width in zip(scales, widths.values(), strict=True)])


def measure_scale(x: Float[Tensor, "T D"], normalisation: Normalisation) -> Float[Tensor, ""]:
    """Return the factor that normalises `x`: see `SparseAutoencoder.start_from`."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).double()
    if normalisation == "sqrt_d":
        scale = math.sqrt(x.shape[1]) / norms.mean()
    elif normalisation == "unit":
        scale = 1 / norms.square().mean().sqrt()
    else:
        scale = norms.new_ones(())
    return scale.float()
