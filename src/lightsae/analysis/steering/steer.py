"""Steering as a context: while it is open, whatever runs the language model runs it with features changed.

Axes: B rows, S positions, D width of the site.
"""

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.reading.compatibility import check_model, check_reads, choose_site
from lightsae.analysis.steering.interventions import Intervention, check_together
from lightsae.analysis.steering.plan import Plan
from lightsae.errors import ConfigError, SiteError, arg
from lightsae.formats.saved_sae import Provenance, SavedSAE
from lightsae.lm import LanguageModel
from lightsae.lm.hooks import PerThread, hooked
from lightsae.lm.model import name_of, site_in
from lightsae.lm.passes import Passes, Positions
from lightsae.sae import SiteRef, SparseAutoencoder, Widths
from lightsae.sae.latent_reader import LatentReader, rounding

# Feature dictionaries that were compared with an SAE once; hashing all weights takes longer than a short generation.
_belonging: weakref.WeakKeyDictionary[SparseAutoencoder, set[str]] = weakref.WeakKeyDictionary()


@runtime_checkable
class SAEWithDictionary(Protocol):
    """An SAE and the feature dictionary made for it in one object, such as `lightsae.load_channel` returns."""

    @property
    def sae(self) -> SparseAutoencoder:
        """The SAE."""

    @property
    def dictionary(self) -> FeatureDictionary:
        """Its feature dictionary."""


class Steering:
    """What a steered model is steered with; returned by `steer`.

    Attributes:
        interventions: As they were given.
        site: Where the model is written.
        mean_norm: The mean activation norm there, the unit of amounts in `norm`; None if it is not known.
        encodes: Tokens of which all latents were computed so far; 0 if latents are computed alone.
    """

    def __init__(
        self,
        model: Any,
        interventions: Sequence[Intervention],
        sae: SparseAutoencoder,
        site: SiteRef,
        passes: Passes,
        mean_norm: float | None,
        maxima: dict[int, float],
    ) -> None:
        self.interventions, self.site, self.mean_norm, self.encodes = list(interventions), site, mean_norm, 0
        self._model, self._sae, self._passes, self._maxima = model, sae, passes, maxima
        features = sorted({one.feature for one in interventions})
        rows = {feature: direction_at(sae, site, feature) for feature in features}
        self._norms = {feature: float(row.norm()) for feature, row in rows.items()}
        self._per_token = sae.refinements.token_norm is not None
        slack = {feature: rounding(sae, feature) for feature in rows}
        self._plan = Plan(interventions, rows, self._to_latent, slack, self._per_token)
        if self._plan.features:
            check_reads(sae, site, str(next(one for one in interventions if one.reads_own or one.when is not None)))
        self._device: torch.device | None = None
        self._reader: LatentReader | None = None
        self._read: PerThread[dict[SiteRef, Tensor]] = PerThread({})

    def report(self) -> dict[str, Any]:
        """Return everything that was done, with the units, as JSON values.

        `raw_norm` is the length of what an addition writes, in the site's own units; `latent` is the amount in the
        SAE's normalised units. With `token_norm` only that is known which is the same at every token.
        """
        entries = []
        for one in self.interventions:
            amount, norm = one.amount(), self._norms[one.feature]
            latent = None if amount is None else self._to_latent(*amount, one.feature, norm)
            raw_norm = None if latent is None or one.reads_own else abs(latent) * norm
            if self._per_token and amount is not None and amount[0] != 0:
                latent, raw_norm = (None, raw_norm) if amount[1] == "norm" else (latent, None)
            entries.append(one.report() | {"latent": latent, "raw_norm": raw_norm})
        return {
            "model": name_of(self._model),
            "site": self.site.site,
            "mean_norm": self.mean_norm,
            "positions": self._passes.positions,
            "skip_first": self._passes.skip_first if self._passes.positions == "all" else 0,
            "interventions": entries,
        }

    @property
    def added(self) -> Float[Tensor, " D"] | None:
        """What is added to every token alike, in the site's units; None if anything else is done, or nothing."""
        return self._plan.added

    def __repr__(self) -> str:
        interventions = "; ".join(map(str, self.interventions))
        norm = "" if self.mean_norm is None else f" (mean norm {self.mean_norm:.4g})"
        return f"Steering({self.site}{norm}: {interventions}; positions {self._passes.positions})"

    @contextmanager
    def open(self) -> Iterator["Steering"]:
        """Hold the hooks."""
        if not self._plan.writes:
            yield self
            return
        model = self._model.model if isinstance(self._model, LanguageModel) else self._model
        written = site_in(self._model, self.site.site)
        elsewhere = [ref for ref in self._sae.widths.read if ref != self.site] if self._plan.features else []
        with ExitStack() as stack:
            stack.enter_context(self._passes.followed(model, lambda: self._read.set({})))
            for ref in elsewhere:
                stack.enter_context(hooked(model, site_in(self._model, ref.site), partial(self._note, ref)))
            stack.enter_context(hooked(model, written, self._write))
            yield self

    def _note(self, site: SiteRef, x: Tensor) -> None:
        # A copy: a later module could write in place.
        self._read.get()[site] = x.detach().clone()

    def _write(self, x: Tensor) -> Tensor | None:
        inside = self._passes.inside(x.shape[:2], x.device)
        if inside is False:
            return None
        if x.shape[2] != self._plan.width:
            raise SiteError(
                f"{self.site.site!r} has width {x.shape[2]} in {name_of(self._model)!r}, and the SAE writes "
                f"{self._plan.width} numbers: it belongs to another model."
            )
        if x.device != self._device:
            self._device = x.device
            self._plan.to(x.device)
            self._reader = LatentReader(self._sae, self._plan.features, x.device) if self._plan.features else None
        flat = x.reshape(-1, x.shape[2])
        scope = inside.reshape(-1) if isinstance(inside, Tensor) else None
        new = self._plan.change(flat, self._latents(flat), scope, self._sae.token_units(flat.detach()))
        return new.view_as(x)

    def _latents(self, x: Tensor) -> Tensor | None:
        if self._reader is None:
            return None
        parts = {}
        for ref in self._sae.widths.read:
            part = x if ref == self.site else self._read.get().get(ref)
            if part is None:
                raise SiteError(
                    f"{self.site.site!r} is written before {ref.site!r} is read, which the latents need; of a "
                    "crosscoder's sites only the last can be clamped. Add and ProjectOut without a condition work."
                )
            parts[ref] = part.reshape(len(x), -1).to(x.device)
        self.encodes += 0 if self._reader.alone else len(x)
        return self._reader(Widths.join(parts, parts).detach())

    def _to_latent(self, amount: float, unit: str, feature: int, norm: float) -> float:
        if unit == "latent" or amount == 0:
            return amount
        if unit == "max":
            return amount * self._maxima[feature]
        assert self.mean_norm is not None
        if norm == 0:
            raise ConfigError(f"feature {feature} writes nothing at {self.site}: its direction there is 0.")
        return amount * self.mean_norm / norm


@contextmanager
def steer(
    model: Any,
    interventions: Intervention | Sequence[Intervention],
    sae: SAEWithDictionary | SavedSAE | SparseAutoencoder | str | Path,
    *,
    dictionary: FeatureDictionary | str | Path | None = None,
    positions: Positions = "all",
    skip_first: int = 1,
    site: str | None = None,
    mean_norm: float | None = None,
    any_model: bool = False,
) -> Iterator[Steering]:
    """While open, features of a language model are changed in every forward pass, whoever runs it.

    Holds for forward, `generate` (KV cache, batches padded on the left, beams) and pipelines. Nothing stays behind
    when it closes, also after an exception. Steers nest: at one site the inner one sees what the outer one left.

    Gradients flow through the activations; latents count as constants.

    Args:
        model: A LanguageModel, or any transformers model.
        interventions: One or more; see `lightsae.analysis.steering.interventions` for what several do together.
        sae: The SAE; or its folder, which also says the model's revision; or what brings the feature dictionary with
            it, such as `lightsae.load_channel(registry, "production")`.
        dictionary: The feature dictionary made for it, or its folder: it knows features' maxima, the mean norm, and the
            model's revision.
        positions: `all`; `generated`: what comes after the prompt; or positions in the row, from 0, without padding.
        skip_first: With `all`: how many first positions of a row are left alone. Position 0 is an attention sink, whose
            norm is far from all others. Other special tokens are steered.
        site: Where to write, for a crosscoder; others have one site.
        mean_norm: The unit of amounts in `norm`, if no feature dictionary says it.
        any_model: Steer a model of another name or revision: a fine-tuned copy.

    Raises:
        ModelError: The SAE was trained on another model or revision.
        SiteError: It belongs to another site; or (in the forward pass) its latents are not known there yet.
        FormatError: The feature dictionary belongs to another SAE.
        ConfigError: An intervention, a feature or a unit does not fit.

    Example:
        with lightsae.steer(model, [Clamp(1234, 2.0, unit="max")], sae, dictionary="dictionaries/topk"):
            model.generate(**inputs)
    """
    several = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    check_together(several)
    if isinstance(sae, SAEWithDictionary):
        if dictionary is not None:
            raise ConfigError(f"{arg('dictionary')} is given, but {arg('sae')} brings its own; leave one of them out.")
        dictionary, saved = sae.dictionary, SavedSAE.of(sae.sae)
    else:
        saved = SavedSAE.of(sae)
    if dictionary is not None:
        dictionary = FeatureDictionary.of(dictionary)
        saved = dictionary.named(saved)
    sae = saved.sae
    if dictionary is not None and dictionary.id not in (compared := _belonging.setdefault(sae, set())):
        dictionary.check_belongs_to(sae)
        compared.add(dictionary.id)
    conditions = [condition.feature for one in several if (condition := one.condition()) is not None]
    check_feature(sae, max(one for one in (*(one.feature for one in several), *conditions) if one is not None))
    target = choose_site(sae, site)
    if not any_model:
        trained_on = dictionary.manifest["model"] if dictionary is not None else {}
        # The revision is that of the first model that is read.
        first = next(iter(sae.widths.read)).model == target.model
        revision = trained_on.get("revision") or saved.provenance.revision
        check_model(model, target.model, revision if first else None)
    if mean_norm is None:
        mean_norm = mean_norm_of(dictionary, sae, target, saved.provenance)
    if mean_norm is None and (one := next((one for one in several if _needed(one, "norm")), None)):
        raise ConfigError(
            f"{one}: the mean norm at {target.site} is not known; give a feature dictionary, the SAE's "
            "folder or mean_norm=..., or write an amount in unit='latent'."
        )
    maxima = _maxima(dictionary, sorted({feature for one in several for feature in _needed(one, "max")}))
    steering = Steering(model, several, sae, target, Passes(positions, skip_first), mean_norm, maxima)
    with steering.open():
        yield steering


def check_feature(sae: SparseAutoencoder, feature: int) -> None:
    """Raise a ConfigError if an SAE has no such feature."""
    if not 0 <= feature < sae.d_sae:
        raise ConfigError(f"feature {feature} does not exist: the SAE has {sae.d_sae}, from 0.")


def direction_at(sae: SparseAutoencoder, site: SiteRef, feature: int) -> Float[Tensor, " D"]:
    """Return what one unit of a feature adds at one of the sites that an SAE predicts, in raw units.

    With `token_norm`, what is added to a token is this times the token's own unit.
    """
    place = list(sae.widths.predicted).index(site)
    return Widths.split(sae.W_dec[feature].detach(), sae.widths.predicted)[site].float() / sae.output_scale[place]


def _needed(one: Intervention, unit: str) -> list[int]:
    """Return the features of which an intervention has an amount, or a threshold, in a unit."""
    amount, condition = one.amount(), one.condition()
    features = [one.feature] if amount is not None and amount[1] == unit and amount[0] != 0 else []
    if condition is not None and condition.unit == unit and condition.feature is not None:
        features.append(condition.feature)
    return features


def _maxima(dictionary: FeatureDictionary | None, features: list[int]) -> dict[int, float]:
    """Return the largest activation of some features, as the feature dictionary knows it."""
    if not features:
        return {}
    if dictionary is None:
        raise ConfigError(
            f"feature {features[0]}: its own maximum is not known; give a feature dictionary (dictionary=...), or "
            "write the amount in unit='norm' or unit='latent'."
        )
    table = dictionary.sql(
        "SELECT feature, max FROM features WHERE list_contains($features, feature)", {"features": features}
    )
    maxima = {row["feature"]: row["max"] for row in table.to_pylist()}
    if dead := [feature for feature in features if not maxima.get(feature)]:
        raise ConfigError(
            f"feature {dead[0]} never fires in the text of the feature dictionary, so it has no maximum; write the "
            "amount in unit='norm' or unit='latent'."
        )
    return maxima


def mean_norm_of(
    dictionary: FeatureDictionary | None, sae: SparseAutoencoder, site: SiteRef, provenance: Provenance
) -> float | None:
    """Return the mean activation norm at a site; None if neither the feature dictionary nor the training says it."""
    predicted = list(sae.widths.predicted)
    effects = dictionary.manifest.get("effects") if dictionary is not None else None
    if effects and effects.get("mean_site_norm") and site == predicted[-1]:
        return float(effects["mean_site_norm"])
    if provenance.normalisation == "sqrt_d" and sae.refinements.token_norm is None:
        # What the scale was measured from: it makes the mean norm the root of the width.
        return math.sqrt(sae.widths.predicted[site]) / float(sae.output_scale[predicted.index(site)])
    return None
