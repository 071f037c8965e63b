"""Which other places of the language model an SAE could be of: neighbours by layer, by kind, and across a norm.

Sites are named here before anything is read; what carries the same activations as another one is left out later.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from lightsae.analysis.diagnose.case import SAID, Alternative, Case, Sample
from lightsae.analysis.reading.loaded_sae import LoadedSAE
from lightsae.errors import LightsaeError
from lightsae.lm import LanguageModel
from lightsae.lm.norms import is_norm
from lightsae.lm.sites import PORTABLE
from lightsae.sae import SiteRef

# The stream itself, and the kind that is named, are tried two layers away, other kinds one.
_FAR, _NEAR = (-2, -1, 1, 2), (-1, 0, 1)
_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Neighbour:
    """Another site.

    Attributes:
        name: As `LanguageModel.site` takes it.
        cause: `site`, `norm` or `gain`.
    """

    name: str
    cause: str


def near_sites(loaded: LoadedSAE) -> dict[SiteRef, list[Neighbour]]:
    """Return the sites near what an SAE reads, and near what it predicts."""
    widths = loaded.sae.widths
    return {site: neighbours(loaded.models[site.model], site.site) for site in {**widths.read, **widths.predicted}}


def neighbours(model: LanguageModel, site: str) -> list[Neighbour]:
    """Return the sites of the same width near one, each once, the likelier ones first."""
    found: dict[str, str] = {}
    width = model.width(site)
    model.sites()  # measures the portable ones in one pass
    for name, cause in [*_by_number(site), *_by_kind(model, site), *_by_norm(model, site, width)]:
        if name == site or name in found:
            continue
        try:
            if cause != "site" or model.width(name) == width:
                found[name] = cause
        except LightsaeError:  # above the last layer, or no vector a token
            continue
    return [Neighbour(name, cause) for name, cause in found.items()]


def _by_number(site: str) -> Iterator[tuple[str, str]]:
    """Give the same place of other layers."""
    layer = _LAYER.search(site)
    for step in (-1, 1, -2, 2) if layer else ():
        assert layer is not None
        if (number := int(layer[0]) + step) >= 0:
            yield site[: layer.start()] + str(number) + site[layer.end() :], "site"


def _by_kind(model: LanguageModel, site: str) -> Iterator[tuple[str, str]]:
    layer = model.site(site).layer
    if layer is None:
        return
    for kind in PORTABLE:
        for step in sorted({*_NEAR, *(_FAR if kind.startswith("resid") else ())}, key=abs):
            if 0 <= layer + step < model.n_layers:
                yield f"{kind}.{layer + step}", "site"


def _by_norm(model: LanguageModel, site: str, width: int) -> Iterator[tuple[str, str]]:
    """Give both sides of the norms of the layer and the next ones, and of those outside the layers."""
    layer = model.site(site).layer
    for path, module in model.model.named_modules():
        # Those of single heads are narrower.
        weight = getattr(module, "weight", None)
        if not is_norm(module) or weight is None or weight.numel() != width:
            continue
        there = model.site(f"{path}.output").layer
        if there is None or layer is None or there - layer in _NEAR:
            for side in ("input", "output", "normalised"):
                yield f"{path}.{side}", "gain" if side == "normalised" else "norm"


def same_place(sample: Sample, a: SiteRef, b: SiteRef) -> bool:
    """Return whether two sites carry the same activations."""
    values = sample[SAID].values
    return bool(torch.equal(values[a], values[b]))


def other_sites(case: Case, sample: Sample, near: dict[SiteRef, list[Neighbour]]) -> Iterator[Alternative]:
    """Give the case at other sites; of a transcoder what is read and what is predicted, and both together.

    Args:
        case: As the SAE's file has it.
        sample: Holds the activations at all of them.
        near: The neighbours of what is read and of what is predicted.
    """
    if case.is_autoencoder:
        for one in _distinct(case.read, near[case.read], sample):
            site = SiteRef(case.read.model, one.name)
            yield _at(replace(case, read=site, predicted=site), one.cause, f"it is of {one.name}", one.name)
        return
    for one in _distinct(case.read, near[case.read], sample):
        site = SiteRef(case.read.model, one.name)
        yield _at(replace(case, read=site), one.cause, f"it reads {one.name}", one.name)
    for one in _distinct(case.predicted, near[case.predicted], sample):
        site = SiteRef(case.predicted.model, one.name)
        yield _at(replace(case, predicted=site), one.cause, f"it predicts {one.name}", None, one.name)
    there = {one.name for one in near[case.predicted]}
    for (read, cause), (predicted, _) in zip(_by_number(case.read.site), _by_number(case.predicted.site), strict=False):
        if predicted in there and read in {one.name for one in near[case.read]}:
            moved = replace(
                case, read=SiteRef(case.read.model, read), predicted=SiteRef(case.predicted.model, predicted)
            )
            yield _at(moved, cause, f"it reads {read} and predicts {predicted}", read, predicted)


def _at(case: Case, cause: str, what: str, site: str | None, target: str | None = None) -> Alternative:
    named = {"site": site, "target_site": target}
    words = ", ".join(f"{setting} {name}" for setting, name in named.items() if name is not None)
    mend = f"write {words}; where the file says another one, correct it there"
    return Alternative(cause, what, mend, case)


def _distinct(said: SiteRef, near: list[Neighbour], sample: Sample) -> Iterator[Neighbour]:
    taken = [said]
    for one in near:
        site = SiteRef(said.model, one.name)
        if not any(same_place(sample, site, other) for other in taken):
            taken.append(site)
            yield one
