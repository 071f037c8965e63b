"""Folders in which a library lays several SAEs side by side: they are listed, and one alone is taken."""

from collections.abc import Sequence
from pathlib import Path

from lightsae.errors import FormatError
from lightsae.formats.files import shown

_NAMED_AT_MOST = 8


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
