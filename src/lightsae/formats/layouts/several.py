"""Folders in which a library lays several SAEs side by side: they are listed, and one alone is taken."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightsae.errors import FormatError
from lightsae.formats.files import shown

_NAMED_AT_MOST = 8


def by_number(paths: Iterable[Path]) -> list[Path]:
    """Return paths in the order in which a person counts.

    >>> [str(path) for path in by_number(map(Path, ["layers.10", "layers.2", "embed"]))]
    ['embed', 'layers.2', 'layers.10']
    """

    def key(path: Path) -> list[str | int]:
        # Every second part is a number.
        return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", str(path)))]

    return sorted(paths, key=key)


def the_only_one(found: list[Path], within: Path, what: str) -> Path:
    """Return the only one of the paths, of which there is at least one.

    Args:
        found: Where the SAEs lie.
        within: The folder that the user named.
        what: What to name instead: "the folder of one".

    Raises:
        FormatError: There are several; the message lists them.
    """
    if len(found) > 1:
        named = listed([str(one.relative_to(within)) for one in found])
        raise FormatError(f"{shown(within)!r} holds {len(found)} SAEs: {named}; name {what}.")
    return found[0]


def listed(names: Sequence[str]) -> str:
    """Return names as a clause of a message; of many the first ones.

    >>> listed([f"layers.{layer}" for layer in range(10)])[-29:]
    'layers.6, layers.7 and 2 more'
    """
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more
