"""What a reader is to the fuzzing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightsae.errors import LightsaeError

# The files of an input, by their names within its folder.
Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Attributes:
        make: Writes a valid input into an empty folder.
        read: Reads an input; raises one of `refusals`, or asserts that the answer is right.
        refusals: What it may raise.
        sign: Makes the hashes of an input hold again, so that what lies behind their check is reached.
        mutates: Which of the files are mutated.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], None]
    refusals: tuple[type[Exception], ...] = (LightsaeError,)
    sign: Callable[[Path], None] | None = None
    mutates: Callable[[str], bool] = lambda name: True
