"""What a layout is: a way in which somebody's library lays an SAE out in files."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from lightsae.errors import FormatError, listed
from lightsae.formats.files import shown
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.portable_crosscoder import PortableCrosscoder

# What a reader gives; the second of several sites.
Opened = PortableSAE | PortableCrosscoder
# SAEs that a message names.
_NAMED = 8


class Layout(ABC):
    """Recognises and reads the files of one library; one that has `write` makes them, too.

    Attributes:
        name: As users write it: `gemma_scope`.
        label: As messages say it: "Gemma Scope".
        weights: Patterns of the file of weights, from the SAE's folder, for what is fetched; none: any such file.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    weights: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def problem(self, path: Path) -> str | None:
        """Say in a clause why a path is not of this layout ("it has no params.npz"); None: it is.

        Looks at names and at small files alone. Exactly one layout takes a path.
        """

    @abstractmethod
    def read(self, path: Path) -> Opened:
        """Read the SAE.

        Raises:
            FormatError: A file is damaged, or says what no SAE of this layout can.
        """


class WritableLayout(Layout):
    """A layout that `lightsae convert` writes.

    Attributes:
        shares_folder: Whether SAEs of several layers lie in one folder, to which `write` adds another.
    """

    shares_folder: ClassVar[bool] = False

    def written(self, sae: PortableSAE, folder: Path) -> Path:
        """Return the path in the folder under which an SAE that was written is read."""
        return folder

    @abstractmethod
    def write(self, sae: PortableSAE, folder: Path) -> None:
        """Write the files into an empty folder, or beside those of other layers.

        Raises:
            FormatError: The layout has no form for such an SAE; nothing is written.
        """


def the_only_one(found: list[Path], within: Path, what: str) -> Path:
    """Return the only one of the paths, of which there is at least one.

    Args:
        found: Where the SAEs lie, where a library lays several side by side.
        within: The folder that the user named.
        what: What to name instead: "the folder of one".

    Raises:
        FormatError: There are several; the message lists them.
    """
    if len(found) > 1:
        named = listed([str(one.relative_to(within)) for one in found], _NAMED)
        raise FormatError(f"{shown(within)!r} holds {len(found)} SAEs: {named}; name {what}.")
    return found[0]
