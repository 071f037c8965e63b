"""What a sparsity mechanism gives: latents from pre-activations, loss terms, and its demands on the decoder.

Axes: T tokens, D width, O width predicted, F latents.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from lightsae.errors import ConfigError, arg
from lightsae.sae.output import SAEOutput
from lightsae.sae.refinements import Refinements
from lightsae.sae.sites import Widths
from lightsae.sae.sparse_ops import Latents, Selection
from lightsae.sae.usage import LatentUsage

HIGHEST_LR = 1e-2  # for runs of a few steps
# How far an encoder column can go in a run, whose length is 1 at the start: of a new SAE, and of one that was trained
# before, which is near.
TRAVEL, TRAVEL_FURTHER = 2.5, 0.4


class Encoding(NamedTuple):
    """What a mechanism makes of an input.

    Attributes:
        latents: Dense (T, F) or sparse.
        pre: Pre-activations (T, F), from mechanisms whose loss looks at them.
        first: Latents of the first of two steps; the SAE sets them.
    """

    latents: Latents
    pre: Tensor | None = None
    first: Latents | None = None


@runtime_checkable
class Structure(Protocol):
    """What a mechanism's loss may ask of the SAE that it works in; `SparseAutoencoder` is one."""

    refinements: Refinements
    b_enc: nn.Parameter
    W_enc: nn.Parameter
    W_dec: nn.Parameter

    @property
    def d_in(self) -> int: ...

    @property
    def centre(self) -> Tensor | None: ...

    def squared_error(self, target: Tensor, output: SAEOutput) -> Tensor: ...

    def reconstruct_with(self, x: Tensor, select: Selection) -> Tensor: ...

    def decode_frozen(self, latents: Latents, x: Tensor) -> Tensor: ...

    def decoder_norms(self) -> Tensor: ...


class Mechanism(nn.Module, ABC):
    """Makes latents sparse, in its own way, inside any structure.

    Every constructor argument is kept as an attribute of the same name: `settings` reads them off.

    Attributes:
        unit_norm_decoder: Decoder rows are kept at norm 1.
        centres_input: `b_dec` is subtracted from the input before encoding.
        initial_decoder_norm: Norm of the decoder rows at the start.
        has_auxk: Dead latents come back by an auxiliary loss, so that resampling leaves them alone.
        competes: Whether a latent fires depends on the others; otherwise it follows from its own encoder column alone.
        two_modes: Latents are made otherwise in training than at inference.
        train_instead: Of a mechanism that is opened from files and not trained, the name of one that is; else empty.
        refused_refinements: Refinements that make no sense with it.
        default_coefficients: What weighs each loss term where the user says nothing.
        default_warm_up: The share of the run over which a term's default coefficient rises from 0.
        progress: Share of the run that is done, for what changes over a run. The trainer sets it before each step.
        passes: How often the SAE encodes: 2 with a second step. The SAE sets it before `build`.
    """

    unit_norm_decoder: bool = True
    centres_input: bool = True
    initial_decoder_norm: float = 1.0
    has_auxk: bool = False
    competes: bool = True
    two_modes: bool = False
    train_instead: str = ""
    refused_refinements: tuple[str, ...] = ()
    default_coefficients: ClassVar[Mapping[str, float]] = {"mse": 1.0}
    default_warm_up: ClassVar[Mapping[str, float]] = {}
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    progress: float = 1.0
    passes: int = 1

    @classmethod
    def parameters_of(cls) -> list[inspect.Parameter]:
        """Return the constructor's parameters: what a user may set."""
        # A mechanism without settings has the constructor of nn.Module, which takes anything.
        return [p for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {parameter.name: getattr(self, parameter.name) for parameter in self.parameters_of()}

    def default_lr(self, d_in: int, steps: int, further: bool = False) -> float:
        """Return the peak learning rate of a run of so many optimiser steps where the user gives none.

        Adam moves each weight by about the rate, so an encoder column of D weights by lr sqrt(D) in a step, and in S
        steps of unrelated directions by lr sqrt(D S). That way is `TRAVEL`; of an SAE that is trained `further`,
        `TRAVEL_FURTHER`.
        """
        return min(HIGHEST_LR, (TRAVEL_FURTHER if further else TRAVEL) / math.sqrt(d_in * steps))

    def check(self, widths: Widths, d_sae: int) -> None:
        """Raise a ConfigError where a setting does not fit the widths."""

    def not_trained(self) -> ConfigError:
        """Return the error that says what to train in place of what is opened alone; see `train_instead`."""
        return ConfigError(
            f"{arg('sae')} is {type(self).__name__}, which is opened from files and not trained; "
            f"write {self.train_instead}."
        )

    def build(self, d_sae: int) -> None:
        """Make the parameters and buffers that the mechanism has of its own."""

    def reset_parameters(self) -> None:
        """Give them their values at the start of a training."""

    def start_from(self, pre: Float[Tensor, "T F"], b_enc: Float[Tensor, " F"]) -> None:
        """Adapt them, and the encoder's bias in place, to the pre-activations of a sample, before the first step."""

    def change_unit(self, factor: Float[Tensor, " _"]) -> None:
        """Multiply what is measured in units of the latents, when these are written `factor` times as large.

        Args:
            factor: (1,), or (F,): each latent's own.
        """

    @abstractmethod
    def encode(
        self,
        x: Float[Tensor, "T D"],
        centre: Float[Tensor, " D"] | None,
        W_enc: Float[Tensor, "D F"],
        b_enc: Float[Tensor, " F"],
    ) -> Encoding:
        """Return the latents of normalised activations, (x - centre) W_enc + b_enc made sparse."""

    def encode_first(
        self,
        x: Float[Tensor, "T D"],
        centre: Float[Tensor, " D"] | None,
        W_enc: Float[Tensor, "D F"],
        b_enc: Float[Tensor, " F"],
    ) -> Encoding:
        """Encode in the first of two steps: as `encode` does, unless something measured in training differs."""
        return self.encode(x, centre, W_enc, b_enc)

    @abstractmethod
    def loss_terms(
        self, sae: Structure, target: Float[Tensor, "T O"], output: SAEOutput, usage: LatentUsage
    ) -> dict[str, Tensor]:
        """Return the unweighted terms of the loss in normalised units."""

    def start_second_from(self, pre: Float[Tensor, "T F"]) -> None:
        """Adapt what the second of two steps has of its own to its pre-activations of the same sample."""

    def observe(self, latents: Latents) -> None:
        """Note what `commit` needs of a training batch."""

    def observe_first(self, latents: Latents) -> None:
        """Note what `commit` needs of the first of two steps."""

    def commit(self) -> None:
        """End an optimiser step: move on what is measured in training, such as thresholds."""

    def upgrade(self, tensors: dict[str, Tensor], prefix: str) -> None:
        """Add to saved tensors, in place, what earlier versions did not save; names begin with `prefix`."""

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        self.upgrade(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def revive(self, latents: Int[Tensor, " n"]) -> None:
        """Give resampled latents the mechanism's own parameters of a fresh start."""
