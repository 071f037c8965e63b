"""Which model and sites an SAE is of, as far as its file tells; what it does not tell, a person can name.

Activation files have no model, and many published files say neither model nor site.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightsae.errors import SiteError, arg
from lightsae.formats.layouts.source import UNKNOWN_TARGET, Source, is_unknown

Entry = Mapping[str, Any]
_HOOK = re.compile(r"(^|\.)hook_\w+$")


@dataclass(frozen=True)
class NamedSites:
    """The sites of an SAE.

    Attributes:
        read: {model, site, width} of each.
        predicted: Likewise.
        told: What the export says of the training.
    """

    read: list[dict[str, Any]]
    predicted: list[dict[str, Any]]
    told: Mapping[str, Any]

    @property
    def targets(self) -> list[dict[str, Any]]:
        """What is predicted, where it is not what is read."""
        return [] if self.predicted == self.read else self.predicted

    @property
    def unknown(self) -> list[str]:
        """What is not known: `model`, `site`, `target_site`."""
        sides = {"site": self.read, "target_site": self.targets}
        missing = [name for name, sites in sides.items() if not all(self._is_known(name, one) for one in sites)]
        return [*([] if all(one["model"] for one in self.read) else ["model"]), *missing]

    @property
    def names(self) -> dict[str, str]:
        """What is known of an SAE of one site, or of one that is read and one that is predicted."""
        sides = {"site": self.read, "target_site": self.targets}
        known = {
            name: sites[0]["site"]
            for name, sites in sides.items()
            if len(sites) == 1 and self._is_named(name, sites[0])
        }
        return known | ({"model": self.read[0]["model"]} if self.read and self.read[0]["model"] else {})

    def check(self, name: str, asked: str | None, where: str) -> None:
        """Refuse a name for what has one, or has several.

        Args:
            name: `site` or `target_site`.
            asked: What it is to be; None: nothing was asked.
            where: The SAE, as the user wrote it.

        Raises:
            SiteError: It is another one.
        """
        sites = self.read if name == "site" else self.targets
        if asked is None:
            return
        if not sites:
            raise SiteError(f"{arg(name)} is {asked!r}, but {where!r} predicts what it reads; leave it out.")
        known = [one["site"] for one in sites if self._is_known(name, one)]
        if len(sites) > 1 or (known and known != [asked]):
            there = ", ".join(one["site"] for one in sites)
            raise SiteError(f"{arg(name)} is {asked!r}, but {where!r} belongs to {there}; leave it out.")

    def named(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Return `read` and `predicted` with names for what is not known."""
        read = [self._renamed(one, "site", names) for one in self.read]
        return {
            "read": read,
            "predicted": [self._renamed(one, "target_site", names) for one in self.targets] or list(read),
        }

    def source(self, data: Mapping[str, Any]) -> Source:
        """Return it in the terms of the layouts.

        Args:
            data: The settings of the training's data, with what the export says.
        """
        told = {name: data.get(name) for name in ("layout", "model_revision", "dataset", "address")}
        told = {name: value for name, value in told.items() if isinstance(value, str)}
        context, published = data.get("context_size"), self.told.get("published")
        return Source(
            context_size=context if isinstance(context, int) else None,
            sees_bos=_sees_bos(data),
            published=tuple(published.items()) if isinstance(published, dict) else (),
            **({"target_site": UNKNOWN_TARGET} if self.targets else {}) | self.names,
            **told,
        )

    def _is_named(self, name: str, entry: Entry) -> bool:
        # The site of an activation file is called after the file.
        told = bool(entry["model"]) or self.told.get(name) == entry["site"]
        return told and not is_unknown(entry["site"])

    def _is_known(self, name: str, entry: Entry) -> bool:
        # A hook of TransformerLens' that has no site here leaves it to a person to find one.
        return self._is_named(name, entry) and _HOOK.search(entry["site"]) is None

    def _renamed(self, entry: Entry, name: str, names: Mapping[str, str]) -> dict[str, Any]:
        site = entry["site"] if self._is_known(name, entry) else names.get(name, entry["site"])
        return {**entry, "model": entry["model"] or names.get("model", ""), "site": site}


def _sees_bos(data: Mapping[str, Any]) -> bool | None:
    if isinstance(told := data.get("sees_bos"), bool):
        return told
    if data.get("skip_positions") or data.get("skip_special_tokens"):
        return False
    return told if isinstance(told := data.get("prepend_bos"), bool) else None
