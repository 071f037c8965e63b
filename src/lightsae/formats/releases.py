"""The list of public releases (releases.yaml): what RELEASE/ID stands for on the Hub."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from lightsae.errors import FormatError
from lightsae.formats.layouts.source import Source
from lightsae.parsing import read_yaml

_TABLE = Path(__file__).with_name("releases.yaml")
_FIELD = re.compile(r"\{(\w+)\}")
# SAELens has releases of their own with one SAE for each layer and width, the one with an L0 nearest to 100.
_CANONICAL = "canonical"


@dataclass(frozen=True)
class Release:
    """SAEs that somebody published in one repository.

    Attributes:
        name: As it is written before the id.
        repository: On the Hub.
        layout: Name in `lightsae.formats.layouts`.
        model: Hub name of the language model; None: several.
        site: What is read, with {layer} for its number.
        target_site: What is predicted, of transcoders.
        layers: Where all are known: those that have SAEs.
        widths: Numbers of latents, as paths have them: "16k".
        sees_bos: Whether the first token was trained on; None is not known.
        ids: Patterns of ids with those of their paths in the repository; none: an id is a path.
        scales: Where files lack it: what activations are multiplied by, by folder and layer.
    """

    name: str
    repository: str
    layout: str
    model: str | None = None
    site: str | None = None
    target_site: str | None = None
    layers: tuple[int, ...] = ()
    widths: tuple[str, ...] = ()
    sees_bos: bool | None = None
    ids: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def path_of(self, sae_id: str) -> str:
        """Return where an SAE lies in the repository.

        Args:
            sae_id: As the release's ids are written; "" for one with a single SAE.

        Raises:
            FormatError: The release has no such id, or no such layer.
        """
        sae_id = sae_id.removesuffix(_CANONICAL).strip("/")
        for pattern, path in self.ids.items():
            if found := _as_regex(pattern).fullmatch(sae_id):
                self._check_layer(found.groupdict().get("layer"), sae_id)
                return path.format(**found.groupdict())
        # A path is an id, too: it is what the repository's page shows.
        paths = [path for path in self.ids.values() if _as_regex(path).fullmatch(sae_id)]
        if self.ids and not paths:
            forms = ", ".join(repr(f"{self.name}/{pattern}") for pattern in self.ids)
            raise FormatError(f"The release {self.name!r} has no SAE {sae_id!r}; its SAEs are {forms}.")
        layer = re.search(r"layer_?(\d+)", sae_id)
        self._check_layer(layer and layer[1], sae_id)
        return sae_id

    def _check_layer(self, layer: str | None, sae_id: str) -> None:
        if layer is not None and self.layers and (not layer.isdecimal() or int(layer) not in self.layers):
            known = self.layers
            spans = len(known) > 1 and known == tuple(range(known[0], known[-1] + 1))
            said = f"{known[0]} to {known[-1]}" if spans else ", ".join(map(str, known))
            raise FormatError(f"The release {self.name!r} has no SAE {sae_id!r}: its layers are {said}.")

    def complete(self, source: Source, path: str) -> Source:
        """Return a source with what the list knows where the files say nothing."""
        layer = re.search(r"(?:layer_?|L)(\d+)", path)

        def of_layer(site: str | None) -> str | None:
            return site.format(layer=layer[1]) if site and layer else site if site and "{" not in site else None

        known: dict[str, Any] = {"model": self.model, "sees_bos": self.sees_bos, "site": of_layer(self.site)}
        if source.site is None:
            known["target_site"] = of_layer(self.target_site)
        new = {name: value for name, value in known.items() if getattr(source, name) is None and value is not None}
        return replace(source, **new)


@cache
def releases() -> dict[str, Release]:
    """Return the list, by name."""
    entries = read_yaml(_TABLE)
    return {one.name: one for entry in entries for one in _expanded(entry)}


def release(name: str) -> Release:
    """Return a release of the list; KeyError: there is none."""
    return releases()[name]


def find(address: str) -> tuple[Release, str] | None:
    """Split RELEASE/ID; None where the first part is the name of no release.

    A release of which somebody has chosen one SAE a layer (SAELens' `...-canonical`) is the release itself.

    Raises:
        FormatError: The release has no such SAE.
    """
    name, _, sae_id = address.partition("/")
    found = releases().get(name) or releases().get(name.removesuffix(f"-{_CANONICAL}"))
    return None if found is None else (found, found.path_of(sae_id))


def _expanded(entry: Mapping[str, Any]) -> Iterator[Release]:
    """Give a release for each combination of an entry's `values`."""
    values, called = entry.get("values", {}), entry.get("called", {})
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))

        def filled(text: str | None, chosen: Mapping[str, str] = chosen) -> str | None:
            # Fields that have no values, such as {layer}, stay.
            return text and _FIELD.sub(lambda found: chosen.get(found[1], found[0]), text)

        model, layers = filled(entry.get("model")), entry.get("layers", ())
        yield Release(
            name=filled(entry["names"]) or "",
            repository=filled(entry["repository"]) or "",
            layout=entry["layout"],
            model=called.get(model, model),
            site=entry.get("site"),
            target_site=entry.get("target_site"),
            layers=tuple(range(layers)) if isinstance(layers, int) else tuple(layers),
            widths=tuple(entry.get("widths", ())),
            sees_bos=entry.get("sees_bos"),
            ids={filled(one) or "": filled(path) or "" for one, path in entry.get("ids", {}).items()},
            scales={mix: tuple(scales) for mix, scales in entry.get("scales", {}).items()},
        )


@cache
def _as_regex(pattern: str) -> re.Pattern[str]:
    # Every second part is a field's name; a layer is a number.
    values = {"layer": "[0-9]+"}
    parts = [
        f"(?P<{part}>{values.get(part, '[^/]+')})" if place % 2 else re.escape(part)
        for place, part in enumerate(_FIELD.split(pattern))
    ]
    return re.compile("".join(parts))
