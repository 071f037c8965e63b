"""What a sweep came to, SAE by SAE, and the words that tell its SAEs and sites apart."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lightsae.sae import SiteRef
from lightsae.sae.sites import short_names
from lightsae.stored import flat

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class SweepEntry:
    """One SAE of a sweep, in JSON values but for the sites: what sweep.json tells and the pictures are drawn of.

    Attributes:
        name: Its name in the run.
        variant: Name of the variant.
        settings: The variant's settings.
        read: Sites read.
        predicted: Sites predicted.
        coefficients: Schedule of each loss term, as {value, warm_up, decay}.
        lr: Peak learning rate.
        tokens: Training tokens seen.
        figures: Final validation figures, without `val/`; None if one is not finite.
    """

    name: str
    variant: str
    settings: Mapping[str, Any]
    read: Sequence[SiteRef]
    predicted: Sequence[SiteRef]
    coefficients: Mapping[str, Mapping[str, float]]
    lr: float
    tokens: int
    figures: Mapping[str, float | None]

    @property
    def family(self) -> str:
        """The variant and its width in words."""
        mechanism = self.settings.get("mechanism")
        inner = f" {mechanism['name']}" if isinstance(mechanism, Mapping) else ""
        return f"{self.variant}{inner} {self.settings['d_sae']}"

    @property
    def details(self) -> dict[str, str]:
        """What can tell SAEs of one family and site apart: settings and weights by name, in words."""
        details = flat({**self.settings, **self.coefficients, "lr": self.lr})
        return {name.removesuffix(".value"): f"{x:g}" if isinstance(x, float) else str(x) for name, x in details}


# A part between dots that is a number. What a colon ends is a model's name, whose number is a version.
LAYER = re.compile(r"(?:^|\.)(\d+)(?=[. ]|$)")


def layer_of(place: str) -> int | None:
    """Return the first layer that a site's name, or a place made of several, tells.

    >>> [layer_of(place) for place in ("mlp_in.3 + mlp_out.4", "llama-3.2:resid_post.7", "embed")]
    [3, 7, None]
    """
    layer = LAYER.search(place)
    return int(layer[1]) if layer else None


def kind_of(place: str) -> str:
    """Return a place's name without the numbers of its layers: what can be followed through the layers."""
    return LAYER.sub("", place)


def place_names(entries: Iterable[SweepEntry]) -> dict[str, str]:
    """Return where each SAE reads, and what it predicts if that is another place, in short words."""
    entries = list(entries)
    short = short_names([site for entry in entries for site in (*entry.read, *entry.predicted)])
    places = {}
    for entry in entries:
        read, predicted = (" + ".join(short[site] for site in sites) for sites in (entry.read, entry.predicted))
        places[entry.name] = read if read == predicted else f"{read} \N{RIGHTWARDS ARROW} {predicted}"
    return places


def point_labels(entries: Sequence[SweepEntry], places: Mapping[str, str]) -> dict[str, str]:
    """Return what stands beside each point: what differs along its line, or its name."""
    labels: dict[str, str] = {}
    for group in grouped(entries, lambda e: (e.family, places[e.name])).values():
        keys = differing(group)
        words = [words_for(entry, keys) for entry in group]
        telling = 1 <= len(keys) <= 2 and len(set(words)) == len(group)
        labels |= {entry.name: text if telling else entry.name for entry, text in zip(group, words, strict=True)}
    return labels


def differing(entries: Sequence[SweepEntry]) -> list[str]:
    """Return the names of those details that are not the same everywhere."""
    details = [entry.details for entry in entries]
    keys = dict.fromkeys(key for of_one in details for key in of_one)
    return [key for key in keys if len({of_one.get(key) for of_one in details}) > 1]


def words_for(entry: SweepEntry, keys: Iterable[str]) -> str:
    """Return an entry's details of these names: `k=16, tilt=0.1`."""
    return ", ".join(f"{key.rpartition('.')[2]}={entry.details.get(key, 'none')}" for key in keys)


def grouped(things: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return lists of things by what the key says of them, in the order in which they came."""
    groups: dict[K, list[T]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups
