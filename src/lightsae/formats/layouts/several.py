"""Folders in which a library lays several SAEs side by side: they are listed, and one alone is taken."""

import re
from collections.abc import Iterable
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
        named = ", ".join(str(one.relative_to(within)) for one in found[:_NAMED_AT_MOST])
        rest = f" and {len(found) - _NAMED_AT_MOST} more" if len(found) > _NAMED_AT_MOST else ""
        raise FormatError(f"{shown(within)!r} holds {len(found)} SAEs: {named}{rest}; name {what}.")
    return found[0]
