"""What every SAE is: an encoder, a decoder, scales, and a mechanism that makes the latents sparse.

Axes:    T tokens, D width read (d_in), O width predicted (d_out), F latents (d_sae).
Units:   inputs and outputs of the public methods are raw activations. Inside, and in the losses, activations are
         normalised: see `normalised`.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightsae.errors import ConfigError, arg, under
from lightsae.sae.initialise import Normalisation, geometric_median, random_like
from lightsae.sae.mechanisms.base import Encoding, Mechanism
from lightsae.sae.normalised import Normalised
from lightsae.sae.output import SAEOutput
from lightsae.sae.ranks import sum_over_shards, used_by_shards
from lightsae.sae.refinements import NO_REFINEMENTS, Refinements, align
from lightsae.sae.sites import SiteRef, Widths
from lightsae.sae.sparse_ops import Latents, Selection, SparseLatents, as_sparse, decode, encode_selected
from lightsae.sae.usage import LatentUsage

MEDIAN_TOKENS = 16384
START_TOKENS = 2048


class SparseAutoencoder(Normalised):
    """An SAE with the plain structure: it predicts the activations that it reads.

    x_hat = b_dec + sum_i f_i d_i, where d_i are the rows of `W_dec` and f the latents that the mechanism makes of
    (x - b_dec) W_enc + b_enc (or of x W_enc + b_enc, where the mechanism says so).

    Every constructor argument but `widths` is kept as an attribute of the same name: `settings` reads them off, which
    is what a saved SAE is rebuilt from.

    Args:
        widths: Sites that are read and predicted, with their widths.
        d_sae: Number of latents.
        mechanism: What makes the latents sparse, with the loss terms that go with it.
        refinements: Options beside it.

    Raises:
        ConfigError: `d_sae` or a setting of the mechanism does not fit.
    """

    predicts_another_site: ClassVar[bool] = False

    def __init__(
        self, widths: Widths, d_sae: int, mechanism: Mechanism, refinements: Refinements = NO_REFINEMENTS
    ) -> None:
        super().__init__(widths, refinements)
        if d_sae < 1:
            raise ConfigError("d_sae", d_sae, "an SAE has at least 1 latent")
        if not self.predicts_another_site and widths.read != widths.predicted:
            predicted = ", ".join(map(str, widths.predicted))
            raise ConfigError(
                f"A {type(self).__name__} predicts what it reads, not {predicted}; choose Transcoder for "
                f"{arg('sae', 'model')}, or leave target_site out."
            )
        with under("refinements"):
            refinements.check(widths, type(mechanism).__name__, mechanism.refused_refinements)
        # Its own: a mechanism holds what is measured in training.
        mechanism = copy.deepcopy(mechanism)
        with under("mechanism" if "mechanism" in self._setting_names() else ""):
            mechanism.check(widths, d_sae)
        mechanism.passes = 2 if refinements.second_step else 1
        mechanism.build(d_sae)
        self.d_sae, self.mechanism = d_sae, mechanism
        self.W_dec = nn.Parameter(torch.empty(d_sae, widths.d_out))
        self.W_enc = nn.Parameter(torch.empty(widths.d_in, d_sae))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(widths.d_out))
        self.build()
        if not self.W_dec.is_meta:  # there it would set nothing, and takes longer than all else
            self.reset_parameters()

    def build(self) -> None:
        """Make what a structure has beside encoder, decoder and scales."""

    def default_lr(self, steps: int, further: bool = False) -> float:
        """Return the peak learning rate of a run of so many optimiser steps where the user gives none.

        Args:
            steps: Of the run.
            further: It was trained before.
        """
        return self.mechanism.default_lr(self.d_in, steps, further)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments but `widths`; `type(sae)(sae.widths, **sae.settings)` is of the same shape."""
        return {name: getattr(self, name) for name in self._setting_names()}

    @classmethod
    def _setting_names(cls) -> list[str]:
        return list(inspect.signature(cls.__init__).parameters)[2:]

    @property
    def progress(self) -> float:
        """The share of the run that is done; see `Mechanism.progress`."""
        return self.mechanism.progress

    @progress.setter
    def progress(self, share: float) -> None:
        self.mechanism.progress = share

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw decoder directions at random, tie the encoder to them, set biases to 0."""
        self.set_directions(*self._draw_directions(generator))
        nn.init.zeros_(self.b_enc)
        nn.init.zeros_(self.b_dec)
        self.mechanism.reset_parameters()

    @torch.no_grad()
    def set_directions(self, read: Float[Tensor, "F D"], predicted: Float[Tensor, "F O"]) -> None:
        """Point every latent's encoder column and decoder row along given vectors, at the norm of a start."""
        norm = self.mechanism.initial_decoder_norm
        self.W_dec.copy_(norm * nn.functional.normalize(predicted, dim=1))
        self.W_enc.copy_(norm * nn.functional.normalize(read, dim=1).T)
        if self.refinements.aligned:
            align(self.W_enc, self.W_dec)

    def _draw_directions(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return random vectors for `set_directions`; the same ones, where an SAE predicts what it reads."""
        drawn = random_like(self.W_dec, generator)
        return drawn, drawn

    @torch.no_grad()
    def start_from(
        self,
        sample: Mapping[SiteRef, Float[Tensor, "T _"]],
        normalisation: Normalisation,
        points: torch.Generator | None = None,
    ) -> None:
        """Measure the scales on a sample of raw activations, start `b_dec` at its geometric median, and thresholds.

        Args:
            sample: Activations of the same tokens at every site, without attention sinks.
            normalisation: "sqrt_d" makes the mean norm sqrt(width), "unit" the mean squared norm 1, "none" keeps raw
                units.
            points: If given, each latent starts at a data point drawn with it: its decoder row and encoder column
                point from the median to that token's activation.

        Raises:
            ActivationError: A site is zero on all tokens.
        """
        sample = self.in_frames(sample)
        self._measure_scales(sample, normalisation)
        # A median of some thousands of tokens is as good a start as one of all, and each iteration reads them all.
        every = max(1, len(next(iter(sample.values()))) // MEDIAN_TOKENS)
        sample = {site: values[::every].float() for site, values in sample.items()}
        read = self._scaled(Widths.join(sample, self.widths.read))
        predicted = Widths.join(sample, self.widths.predicted) * self._output_factor()
        self._start_centres(read, predicted)
        if points is not None:
            chosen = torch.randint(len(read), (self.d_sae,), generator=points).to(read.device)
            centre = self.b_dec if self.centre is None else self.centre
            self.set_directions(read[chosen] - centre, predicted[chosen] - self.b_dec)
        if self.centre is None:
            # Starts where a centring encoder would: at zero for the median input.
            self.b_enc.copy_(-(self.b_dec @ self.W_enc))
        read = read[:START_TOKENS]
        self.mechanism.start_from(self._pre(read), self.b_enc)
        if self.refinements.second_step:
            self.mechanism.start_second_from(self._pre(self._second_input(read, self._first(read))))

    def _start_centres(self, read: Float[Tensor, "T D"], predicted: Float[Tensor, "T O"]) -> None:
        """Start `b_dec` from normalised activations."""
        self.b_dec.copy_(geometric_median(predicted))

    def encode(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch F"]:
        """Return the latents of raw activations, dense, in normalised units."""
        latents = self._encoding(self._normalised(x.reshape(-1, self.d_in))).latents
        dense = latents if isinstance(latents, Tensor) else latents.to_dense()
        return dense.reshape(*x.shape[:-1], self.d_sae)

    def encode_sparse(self, x: Float[Tensor, "T D"]) -> SparseLatents:
        """Return the latents of raw activations as values and indices, in normalised units."""
        return as_sparse(self._encoding(self._normalised(x)).latents)

    def pre_activations(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T F"]:
        """Return what the mechanism would choose from, of raw activations: dense, before any second step."""
        return self._pre(self._normalised(x))

    def encode_normalised(self, x: Float[Tensor, "T D"]) -> Latents:
        """Return the latents of normalised activations, dense or sparse as the mechanism makes them."""
        return self._encoding(x).latents

    def decode(
        self, latents: Float[Tensor, "*batch F"], x: Float[Tensor, "*batch D"] | None = None
    ) -> Float[Tensor, "*batch O"]:
        """Return the raw activations that dense latents stand for.

        Args:
            latents: In normalised units.
            x: The raw activations of the same tokens; needed with `token_norm` alone, where each has its own unit.

        Raises:
            ConfigError: `x` is needed and not given.
        """
        decoded = (latents @ self.W_dec + self.b_dec) / self._output_factor()
        frame = self._frame_for(x)
        return decoded if frame is None else frame.out_of(decoded)

    def forward(self, x: Float[Tensor, "T D"]) -> SAEOutput:
        """Encode raw activations and decode them again."""
        x, frame = self._read(x)
        latents, pre, first = self._encoding(x)
        return SAEOutput(x, latents, self._decoded(latents, x), self._output_factor(), pre, first, frame)

    def loss_terms(self, x: Float[Tensor, "T O"], output: SAEOutput, usage: LatentUsage) -> dict[str, Tensor]:
        """Return the named, unweighted terms of the loss for the raw target `x`; each is a scalar."""
        return self.mechanism.loss_terms(self, output.normalised(x), output, usage)

    def squared_error(self, target: Float[Tensor, "T O"], output: SAEOutput) -> Float[Tensor, ""]:
        """Return the mean over tokens of sum_O e^2, in normalised units: what mechanisms build their `mse` on."""
        return self.refinements.mean((target - output.x_hat_normalised).square().sum(1))

    def reconstruct_with(self, x: Float[Tensor, "T D"], select: Selection) -> Float[Tensor, "T O"]:
        """Return the normalised prediction from another selection of latents than the mechanism's own."""
        return self._decoded(encode_selected(x, self.centre, self.W_enc, self.b_enc, select), x)

    def decode_frozen(self, latents: Latents, x: Float[Tensor, "T D"]) -> Float[Tensor, "T O"]:
        """Return the normalised prediction from latents, with no gradient to the decoder."""
        return sum_over_shards(decode(latents, self.W_dec.detach())) + self.b_dec.detach()

    def decoder_norms(self) -> Float[Tensor, " F"]:
        """Return the norm of each latent's decoder row, as sparsity penalties weigh it."""
        norms: Tensor = self.W_dec.norm(dim=1)
        return norms

    def observe(self, output: SAEOutput) -> None:
        """Note what `commit` needs of a training batch."""
        self.mechanism.observe(output.latents)
        if output.first is not None:
            self.mechanism.observe_first(output.first)

    def commit(self) -> None:
        """End an optimiser step: restore the constraints, and move on what is measured in training."""
        self.constrain()
        self.mechanism.commit()

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
        if self.refinements.aligned:
            align(self.W_enc, self.W_dec)

    def extra_repr(self) -> str:
        sizes = f"d_in={self.d_in}, d_sae={self.d_sae}"
        return sizes if self.d_out == self.d_in else f"{sizes}, d_out={self.d_out}"

    def direction(self, latent: int, x: Float[Tensor, "*batch D"] | None = None) -> Float[Tensor, "*tokens O"]:
        """Return what one unit of a latent adds to the raw activations: d_i / output_scale.

        Args:
            latent: Its number.
            x: The raw activations of the tokens; needed with `token_norm` alone.

        Returns:
            (O,); with `token_norm` (*batch, O), for each token that times its own unit.

        Raises:
            ConfigError: `x` is needed and not given.
        """
        direction = self.W_dec[latent] / self._output_factor()
        frame = self._frame_for(x)
        return direction if frame is None else direction * frame.unit

    @property
    def centre(self) -> Float[Tensor, " D"] | None:
        """What is subtracted from normalised inputs before encoding."""
        chosen = self.refinements.centre_input
        return used_by_shards(self.b_dec) if (self.mechanism.centres_input if chosen is None else chosen) else None

    def _encoding(self, x: Tensor) -> Encoding:
        first = self._first(x) if self.refinements.second_step else None
        seen = x if first is None else self._second_input(x, first)
        encoding = self.mechanism.encode(seen, self.centre, self.W_enc, self.b_enc)._replace(first=first)
        if self.refinements.prune is not None and not self.training:
            # What is left of x itself, which a second step has replaced for the encoder alone.
            residual = x - self._decoded(encoding.latents, x)
            pruned = self.refinements.pruned(encoding.latents, residual, self.W_dec, self.refinements.prune)
            encoding = encoding._replace(latents=pruned)
        return encoding

    def _first(self, x: Tensor) -> Latents:
        """Return the latents of the first of two steps."""
        return self.mechanism.encode_first(x, self.centre, self.W_enc, self.b_enc).latents

    def _second_input(self, x: Tensor, first: Latents) -> Tensor:
        """Return what the second step encodes."""
        return x + self.refinements.second_step * (x - self._decoded(first, x))

    def _decoded(self, latents: Latents, x: Tensor) -> Tensor:
        """Return the normalised prediction; `x` is the normalised input, for structures that use it here too."""
        return sum_over_shards(decode(latents, self.W_dec)) + self.b_dec

    def _pre(self, x: Tensor) -> Tensor:
        centred = x if self.centre is None else x - self.centre
        return torch.addmm(self.b_enc, centred, self.W_enc)
