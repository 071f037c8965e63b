"""Steering as a context: while it is open, whatever runs the language model runs it with features changed.

Axes: B rows, S positions, D width of the site.
"""

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.reading.compatibility import check_model, check_reads, choose_site
from lightsae.analysis.steering.interventions import Intervention, check_together
from lightsae.analysis.steering.plan import Plan
from lightsae.errors import ConfigError, SiteError
from lightsae.formats.native import describe_sae, load_sae
from lightsae.lm import LanguageModel
from lightsae.lm.hooks import hooked
from lightsae.lm.model import name_of, site_in
from lightsae.lm.passes import Passes, Positions
from lightsae.production.registry import promoted_or_given
from lightsae.sae import SiteRef, SparseAutoencoder, Widths
from lightsae.sae.latent_reader import LatentReader, rounding

# Dictionaries that were compared with an SAE once; hashing all weights takes longer than a short generation.
_belonging: weakref.WeakKeyDictionary[SparseAutoencoder, set[str]] = weakref.WeakKeyDictionary()


class Steering:
    """What a steered model is steered with; given by `steer`.

    Attributes:
        interventions: As they were given.
        site: Where the model is written.
        mean_norm: The mean activation norm there, None where nobody said; the unit of amounts in `norm`.
        encodes: Tokens of which the whole dictionary was encoded so far; none where latents are computed alone.
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
        rows = _rows_of(sae, site, sorted({one.feature for one in interventions}))
        self._norms = {feature: float(row.norm()) for feature, row in rows.items()}
        self._plan = Plan(interventions, rows, self._to_latent, {feature: rounding(sae, feature) for feature in rows})
        if self._plan.features:
            check_reads(sae, site, str(next(one for one in interventions if one.reads_own or one.when is not None)))
        self._device: torch.device | None = None
        self._reader: LatentReader | None = None
        self._read: dict[SiteRef, Tensor] = {}

    def report(self) -> dict[str, Any]:
        """Return everything that was done, with the units, as JSON values.

        `raw_norm`, of an addition, is the length of what is written, in the site's own units; `latent` is the amount in
        the dictionary's units.
        """
        told = []
        for one in self.interventions:
            given = one.amount()
            latent = None if given is None else self._to_latent(*given, one.feature, self._norms[one.feature])
            entry = {"latent": latent, "raw_norm": None}
            if latent is not None and not one.reads_own:
                entry["raw_norm"] = abs(latent) * self._norms[one.feature]
            told.append(one.report() | entry)
        return {
            "model": name_of(self._model),
            "site": self.site.site,
            "mean_norm": self.mean_norm,
            "positions": self._passes.positions,
            "skip_first": self._passes.skip_first if self._passes.positions == "all" else 0,
            "interventions": told,
        }

    def __repr__(self) -> str:
        said = "; ".join(map(str, self.interventions))
        norm = "" if self.mean_norm is None else f" (mean norm {self.mean_norm:.4g})"
        return f"Steering({self.site}{norm}: {said}; positions {self._passes.positions})"

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
            stack.enter_context(self._passes.followed(model, self._read.clear))
            for ref in elsewhere:
                stack.enter_context(hooked(model, site_in(self._model, ref.site), partial(self._note, ref)))
            stack.enter_context(hooked(model, written, self._write))
            yield self

    def _note(self, site: SiteRef, x: Tensor) -> None:
        # A copy: a later module could write in place.
        self._read[site] = x.detach().clone()

    def _write(self, x: Tensor) -> Tensor | None:
        inside = self._passes.inside(x.shape[:2], x.device)
        if inside is False:
            return None
        if x.shape[2] != self._plan.width:
            raise SiteError(
                f"{self.site.site!r} has width {x.shape[2]} in {name_of(self._model)!r}, and the dictionary writes "
                f"{self._plan.width} numbers: it belongs to another model."
            )
        if x.device != self._device:
            self._device = x.device
            self._plan.to(x.device)
            self._reader = LatentReader(self._sae, self._plan.features, x.device) if self._plan.features else None
        flat = x.reshape(-1, x.shape[2])
        scope = inside.reshape(-1) if isinstance(inside, Tensor) else None
        new = self._plan.change(flat, self._latents(flat), scope)
        return new.view_as(x)

    def _latents(self, x: Tensor) -> Tensor | None:
        if self._reader is None:
            return None
        parts = []
        for ref in self._sae.widths.read:
            part = x if ref == self.site else self._read.get(ref)
            if part is None:
                raise SiteError(
                    f"{self.site.site!r} is written before {ref.site!r} is read, which the latents need; of a "
                    "crosscoder's sites only the last can be clamped. Add and ProjectOut without a condition work."
                )
            parts.append(part.reshape(len(x), -1))
        read = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        self.encodes += 0 if self._reader.alone else len(x)
        return self._reader(read.detach())

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
    *,
    sae: SparseAutoencoder | str | Path | None = None,
    dictionary: FeatureDictionary | str | Path | None = None,
    channel: str | None = None,
    registry: str | Path = "registry",
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
        sae: The dictionary of latents, or its folder, which also says the model's revision.
        dictionary: The feature dictionary made for it, or its folder: it knows features' maxima, the mean norm, and the
            model's revision.
        channel: In place of both: what is promoted to `staging` or `production` of a registry, after its hashes, the
            model and the site were checked. For many short uses, call `load_channel` once and give what it returns.
        registry: The registry: a folder, or `hub:org/name`.
        positions: `all`; `generated`: what comes after the prompt; or positions in the row, from 0, without padding.
        skip_first: With `all`: how many first positions of a row are left alone. Position 0 is an attention sink, whose
            norm is far from all others. Other special tokens are steered.
        site: Where to write, for a crosscoder; others have one site.
        mean_norm: The unit of amounts in `norm`, where no feature dictionary says it.
        any_model: Steer a model of another name or revision: a fine-tuned copy.

    Raises:
        ModelError: The dictionary was made for another model or revision.
        SiteError: It belongs to another site; or (in the forward pass) its latents are not known there yet.
        FormatError: The feature dictionary belongs to another SAE; or a promoted version was changed.
        ConfigError: An intervention, a feature or a unit does not fit; or nothing is promoted to the channel.

    Example:
        with lightsae.steer(model, [Clamp(1234, 2.0, unit="max")], sae=sae, dictionary="dictionaries/topk"):
            model.generate(**inputs)
    """
    given = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    check_together(given)
    sae, dictionary = promoted_or_given(model, sae, dictionary, channel, registry, site, any_model)
    provenance: dict[str, Any] = {}
    if not isinstance(sae, SparseAutoencoder):
        provenance = describe_sae(sae)["provenance"]
        sae = load_sae(sae)
    if dictionary is not None and not isinstance(dictionary, FeatureDictionary):
        dictionary = FeatureDictionary.open(dictionary)
    if dictionary is not None:
        _check_dictionary(dictionary, sae)
    conditions = [condition for one in given if (condition := one.condition()) is not None]
    named = [one.feature for one in given] + [c.feature for c in conditions if c.feature is not None]
    if max(named) >= sae.d_sae:
        raise ConfigError(f"feature {max(named)} does not exist: the dictionary has {sae.d_sae}, from 0.")
    target = choose_site(sae, site)
    if not any_model:
        told = dictionary.manifest["model"] if dictionary is not None else {}
        # The revision is that of the first model that is read.
        first = next(iter(sae.widths.read)).model == target.model
        revision = told.get("revision") or provenance.get("model_revision")
        check_model(model, target.model, revision if first else None)
    if mean_norm is None:
        mean_norm = mean_norm_of(dictionary, sae, target, provenance)
    units = _units(given)
    if mean_norm is None and "norm" in units:
        raise ConfigError(
            f"{units['norm']}: the mean norm at {target.site} is not known; give a feature dictionary, the SAE's "
            "folder or mean_norm=..., or write an amount in unit='latent'."
        )
    wanted = sorted({f for one in given for f in _in_maxima(one)})
    steering = Steering(
        model, given, sae, target, Passes(positions, skip_first), mean_norm, _maxima(dictionary, wanted)
    )
    with steering.open():
        yield steering


def _check_dictionary(dictionary: FeatureDictionary, sae: SparseAutoencoder) -> None:
    compared = _belonging.setdefault(sae, set())
    if dictionary.id not in compared:
        dictionary.check_belongs_to(sae)
        compared.add(dictionary.id)


def _rows_of(sae: SparseAutoencoder, site: SiteRef, features: list[int]) -> dict[int, Tensor]:
    """Return what one unit of some features adds at a site, (D,) each, in raw units."""
    return {f: Widths.split(sae.direction(f).detach().float(), sae.widths.predicted)[site].clone() for f in features}


def _units(interventions: list[Intervention]) -> dict[str, Intervention]:
    """Return the units in which there are amounts, each with an intervention that has it."""
    return {given[1]: one for one in interventions if (given := one.amount()) and given[0] != 0}


def _in_maxima(one: Intervention) -> list[int]:
    """Return the features whose maximum an intervention needs."""
    given, condition = one.amount(), one.condition()
    needed = [one.feature] if given is not None and given[1] == "max" and given[0] != 0 else []
    if condition is not None and condition.unit == "max" and condition.feature is not None:
        needed.append(condition.feature)
    return needed


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
        "SELECT feature, max FROM features WHERE list_contains($wanted, feature)", {"wanted": features}
    )
    found = {row["feature"]: row["max"] for row in table.to_pylist()}
    if dead := [feature for feature in features if not found.get(feature)]:
        raise ConfigError(
            f"feature {dead[0]} never fires in the text of the feature dictionary, so it has no maximum; write the "
            "amount in unit='norm' or unit='latent'."
        )
    return found


def mean_norm_of(
    dictionary: FeatureDictionary | None, sae: SparseAutoencoder, site: SiteRef, provenance: dict[str, Any]
) -> float | None:
    """Return the mean activation norm at a site, where something knows it."""
    predicted = list(sae.widths.predicted)
    effects = dictionary.manifest.get("effects") if dictionary is not None else None
    if effects and effects.get("mean_site_norm") and site == predicted[-1]:
        return float(effects["mean_site_norm"])
    if provenance.get("normalisation") == "sqrt_d":
        # What the scale was measured from: it makes the mean norm the root of the width.
        return math.sqrt(sae.widths.predicted[site]) / float(sae.output_scale[predicted.index(site)])
    return None
