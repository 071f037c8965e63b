"""An SAE in the terms that every layout shares, between a file of somebody's and an SAE of ours.

A reader of a layout makes a `PortableSAE` of its tensors; a writer is given one. It speaks of raw activations, in
float32, so that nothing of a scale, a dtype or an orientation is left to be known:

    u = x - b_dec if subtracts_b_dec else x          z = u W_enc + b_enc
    f = activation(z)                                x_hat = f W_dec + b_dec (+ x W_skip)

With `token_norm`, x and x_hat in these are the token's normalised activations: see `lightsae.sae.token_norm`.

Axes:    T tokens, D width read, O width predicted, F latents.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError, FormatError, under
from lightsae.formats.layouts.source import Source
from lightsae.sae import MECHANISMS, VARIANTS, Matryoshka, Mechanism, Refinements, SparseAutoencoder
from lightsae.sae.token_norm import TokenNorm

Activation = Literal["relu", "topk", "groupmax", "jumprelu", "gated", "matching_pursuit"]
# A threshold's logarithm has to be finite; what lies below fires wherever a pre-activation is positive.
_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Pursuit:
    """When a matching pursuit ends; see `lightsae.sae.mechanisms.MatchingPursuit`, whose settings these are."""

    residual_threshold: float
    max_iterations: int | None
    stop_on_duplicate_support: bool


@dataclass(frozen=True)
class PortableSAE:
    """An SAE that takes and gives raw activations, whatever file it lay in.

    Attributes:
        activation: `relu`: max(z, 0). `topk`: of each token the k largest z, where they are positive. `groupmax`: of
            each token the largest z of each of k groups of neighbours, where it is positive. `jumprelu`: z where z >
            threshold and z > 0. `gated`: max(exp(r_mag) (z - b_enc) + b_mag, 0) where z > 0. `matching_pursuit`: one
            after another, of what those before leave of x - b_dec; W_enc is then W_dec.T, and b_enc 0.
        W_enc: (D, F).
        b_enc: (F,); of `gated` the gate's.
        W_dec: (F, O).
        b_dec: (O,).
        subtracts_b_dec: Whether `b_dec` is subtracted from x before encoding; never with `predicts_another_site`.
        k: Of `topk` and `groupmax`; of others, where they were trained to a number of latents per token, that number.
        threshold: Of `jumprelu`, (F,).
        r_mag: Of `gated`, (F,).
        b_mag: Of `gated`, (F,).
        W_skip: (D, O), of a skip transcoder.
        pursuit: Of `matching_pursuit`.
        groups: Of a Matryoshka SAE, the latents that each prefix adds; what is given does not depend on them.
        token_norm: How each token is normalised before all else, and brought back; never with `W_skip` or where another
            site is predicted.
        source: Where it comes from.
        folded: What was worked into the tensors, one clause each: "input scale 0.0312 into W_enc".
    """

    activation: Activation
    W_enc: Float[Tensor, "D F"]
    b_enc: Float[Tensor, " F"]
    W_dec: Float[Tensor, "F O"]
    b_dec: Float[Tensor, " O"]
    subtracts_b_dec: bool = False
    k: int | None = None
    threshold: Float[Tensor, " F"] | None = None
    r_mag: Float[Tensor, " F"] | None = None
    b_mag: Float[Tensor, " F"] | None = None
    W_skip: Float[Tensor, "D O"] | None = None
    pursuit: Pursuit | None = None
    groups: tuple[int, ...] | None = None
    token_norm: TokenNorm | None = None
    source: Source = field(default_factory=Source)
    folded: tuple[str, ...] = ()

    @property
    def d_sae(self) -> int:
        return len(self.W_dec)

    @property
    def is_nested(self) -> bool:
        """Whether it is a Matryoshka of ours: with groups, and over TopK or one threshold for all latents."""
        if self.groups is None or self.activation == "topk":
            return self.groups is not None
        return self.k is not None and self.threshold is not None and bool((self.threshold == self.threshold[0]).all())

    def with_note(self, note: str) -> "PortableSAE":
        """Return the SAE with one more clause in `folded`."""
        return replace(self, folded=(*self.folded, note))

    def with_scales(self, read: float, predicted: float) -> "PortableSAE":
        """Return the SAE for raw activations, where this one's tensors are for x * read and y * predicted.

        Thresholds and `b_enc` stay, since z does: W_enc *= read, W_dec /= predicted, b_dec /= predicted, and W_skip
        times read / predicted. With `subtracts_b_dec` the two scales are one. In a matching pursuit the directions
        stay, since encoder and decoder share them, and the latents take on the unit of x.
        """
        if read == predicted == 1:
            return self
        assert not self.subtracts_b_dec or read == predicted
        if self.pursuit is not None:
            pursuit = replace(self.pursuit, residual_threshold=self.pursuit.residual_threshold / read)
            note = f"scale {read:.6g} of activations into b_dec, residual_threshold and the unit of latents"
            return replace(self, b_dec=self.b_dec / read, pursuit=pursuit, folded=(*self.folded, note))
        skip = None if self.W_skip is None else self.W_skip * (read / predicted)
        note = f"scale {read:.6g} of what is read into W_enc, {predicted:.6g} of what is predicted into W_dec and b_dec"
        return replace(
            self,
            W_enc=self.W_enc * read,
            W_dec=self.W_dec / predicted,
            b_dec=self.b_dec / predicted,
            W_skip=skip,
            folded=(*self.folded, note),
        )

    def with_latents_times(self, factor: Float[Tensor, " F"], why: str) -> "PortableSAE":
        """Return the SAE whose latents are f * factor, with the same predictions; `factor` is above 0.

        Of `topk` and `groupmax` this is another SAE unless all factors are equal: it then chooses by z * factor. Not of
        `matching_pursuit`, whose encoder and decoder share their directions.
        """
        assert self.pursuit is None
        times = {name: value * factor for name in ("threshold", "b_mag") if (value := getattr(self, name)) is not None}
        return replace(
            self,
            W_enc=self.W_enc * factor,
            b_enc=self.b_enc * factor,
            W_dec=self.W_dec / factor[:, None],
            folded=(*self.folded, why),
            **times,
        )

    @classmethod
    def of(cls, sae: SparseAutoencoder, source: Source) -> "PortableSAE":
        """Return one of our SAEs in these terms.

        Raises:
            FormatError: It has no such form: several sites, a second step, pruning.
        """
        if len(sae.widths.read) > 1 or len(sae.widths.predicted) > 1:
            raise FormatError(f"A {type(sae).__name__} reads several sites, and no other layout holds such an SAE.")
        for name in ("second_step", "prune"):
            if getattr(sae.refinements, name):
                raise FormatError(
                    f"The SAE has {name}, with which its latents are more than one encoder's; no other layout holds it."
                )
        mechanism, read, predicted = sae.mechanism, float(sae.input_scale), float(sae.output_scale)
        tensors = {name: value.detach().float() for name, value in sae.state_dict().items()}
        b_enc, b_dec, skip = tensors["b_enc"], tensors["b_dec"], tensors.get("W_skip")
        subtracts = sae.centre is not None
        folded: tuple[str, ...] = ()
        if sae.predicts_another_site:
            centre, subtracts = tensors["input_centre"], False
            b_enc = b_enc - centre @ tensors["W_enc"]
            b_dec = b_dec if skip is None else b_dec - centre @ skip
            folded = ("the centre of what is read into b_enc",)
        portable = cls(
            **_in_portable_terms(mechanism, sae.d_sae),
            W_enc=tensors["W_enc"],
            b_enc=b_enc,
            W_dec=tensors["W_dec"],
            b_dec=b_dec,
            subtracts_b_dec=subtracts,
            W_skip=skip,
            groups=_groups(sae),
            token_norm=sae.refinements.token_norm,
            source=source,
            folded=folded,
        )
        portable._check_tied()
        return portable.with_scales(read, predicted)

    def to_sae(self) -> SparseAutoencoder:
        """Make the SAE, in eval mode.

        Raises:
            FormatError: A tensor holds a NaN or an infinity, or the parts do not fit each other.
        """
        for name, value in self._tensors().items():
            if not bool(value.isfinite().all()):
                raise FormatError(f"{name} holds a NaN or an infinity.")
        self._check_tied()
        widths = self.source.widths(self.W_enc.shape[0], self.W_dec.shape[1])
        another = widths.read != widths.predicted
        try:
            with torch.device("meta"), under("settings"):
                mechanism = self._mechanism()
                refinements = Refinements(token_norm=self.token_norm)
                if not another and self.subtracts_b_dec != mechanism.centres_input:
                    refinements = replace(refinements, centre_input=self.subtracts_b_dec)
                if another:
                    kind, skip = VARIANTS["Transcoder"], self.W_skip is not None
                    sae = kind(widths, self.d_sae, mechanism, skip=skip, refinements=refinements)  # type: ignore[call-arg]
                elif self.is_nested:
                    kind, groups = VARIANTS["Matryoshka"], list(self.groups or ())
                    sae = kind(widths, self.d_sae, mechanism, groups=groups, refinements=refinements)  # type: ignore[call-arg]
                else:
                    kind = VARIANTS[type(mechanism).__name__]
                    sae = kind(widths, self.d_sae, **mechanism.settings, refinements=refinements)
        except ConfigError as error:
            raise FormatError(f"The file makes no SAE: {error}") from error
        own = {f"mechanism.{name}": value for name, value in self._own_tensors().items()}
        scales = {"input_scale": torch.ones(1), "output_scale": torch.ones(1)}
        centre = {"input_centre": torch.zeros(self.W_enc.shape[0])} if another else {}
        named = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        skip_part = {} if self.W_skip is None else {"W_skip": self.W_skip}
        tensors = named | skip_part | own | scales | centre
        sae.load_state_dict({name: value.float().contiguous() for name, value in tensors.items()}, assign=True)
        return sae.eval()

    def _check_tied(self) -> None:
        """Raise a FormatError where a matching pursuit would search in other directions than it predicts with."""
        if self.pursuit is None:
            return
        if self.b_enc.any() or self.W_enc.shape != self.W_dec.T.shape or not torch.equal(self.W_enc, self.W_dec.T):
            raise FormatError("In a matching pursuit W_enc is W_dec.T and b_enc is 0; of this SAE that is not so.")

    def _mechanism(self) -> Mechanism:
        if self.pursuit is not None:
            return MECHANISMS["MatchingPursuit"](**asdict(self.pursuit))
        if self.activation in ("topk", "groupmax"):
            assert self.k is not None
            return MECHANISMS["TopK" if self.activation == "topk" else "GroupMax"](k=self.k)
        if self.is_nested:
            return MECHANISMS["BatchTopK"](k=self.k)
        return MECHANISMS[{"relu": "ReLU", "jumprelu": "JumpReLU", "gated": "Gated"}[self.activation]]()

    def _own_tensors(self) -> dict[str, Tensor]:
        """Return what the mechanism has of its own."""
        if self.activation == "jumprelu":
            assert self.threshold is not None
            if self.is_nested:
                # Ours fires at the threshold as well.
                return {"threshold": torch.nextafter(self.threshold[0].float(), torch.tensor(torch.inf))}
            return {"log_threshold": self.threshold.double().clamp_min(_SMALLEST).log()}
        if self.activation == "gated":
            assert self.r_mag is not None
            assert self.b_mag is not None
            return {"r_mag": self.r_mag, "b_mag": self.b_mag}
        return {}

    def _tensors(self) -> Mapping[str, Tensor]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _groups(sae: SparseAutoencoder) -> tuple[int, ...] | None:
    # Prefixes by frequency are no groups of neighbours.
    return tuple(sae.group_sizes) if isinstance(sae, Matryoshka) and sae.order == "index" else None


def _in_portable_terms(mechanism: Mechanism, d_sae: int) -> dict[str, Any]:
    """Return the activation of a mechanism of ours, with what goes with it."""
    name = type(mechanism).__name__
    state = {key: value.detach().float() for key, value in mechanism.state_dict().items()}
    if name == "ReLU":
        return {"activation": "relu"}
    if name == "JumpReLU":
        return {"activation": "jumprelu", "threshold": state["log_threshold"].exp()}
    if name == "Gated":
        return {"activation": "gated", "r_mag": state["r_mag"], "b_mag": state["b_mag"]}
    if name == "MatchingPursuit":
        return {"activation": "matching_pursuit", "pursuit": Pursuit(**mechanism.settings)}
    if name in ("TopK", "GroupMax"):
        return {"activation": name.lower(), "k": mechanism.settings["k"]}
    if name == "BatchTopK":
        # Ours fires at the threshold as well.
        below = torch.nextafter(state["threshold"], torch.tensor(-torch.inf)).clamp_min(0)
        return {"activation": "jumprelu", "threshold": below.expand(d_sae).clone(), "k": mechanism.settings["k"]}
    raise FormatError(f"The mechanism {name} has no form in other layouts.")
