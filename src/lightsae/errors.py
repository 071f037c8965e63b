"""The mistakes a user can make. The command line prints the message alone and ends with exit code 2.

A message names the argument, what was found, and what to write instead. The library speaks of arguments, the command
line of keys: an argument in a message is marked, and the callers in between add where the user wrote it.

    raise ConfigError("k", k, f"it must lie in 1..d_sae ({d_sae})")     # k is 0; it must lie in 1..d_sae (16).
    with under("saes.small.sae"): ...                                   # saes.small.sae.k is 0; ...
    with under(name_or_path="model"): ...                               # name_or_path is called model here
    with section("model"): ...                                          # on the command line: model.saes.small.sae.k
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_ABSENT: Any = object()
# A marked argument: its section (empty until somebody says it), then its name.
_MARKED = re.compile("\x02([^\x1f\x03]*)\x1f([^\x03]*)\x03")


def arg(name: str, of: str = "") -> str:
    """Mark an argument's name for a message.

    Args:
        name: As the function's signature has it: `site`.
        of: Its section of a configuration file, where it is not that of the function which raises: `trainer`.
    """
    return f"\x02{of}\x1f{name}\x03"


class LightsaeError(ValueError):
    """Base of every error that a user can cause and mend.

    Args:
        message: A whole sentence, in which arguments are marked by `arg`; or, with `found`, the name of one argument.
        found: The argument's value.
        advice: What to write instead: "it must be above 0".

    Example:
        >>> str(ConfigError("k", 0, "it must be at least 1"))
        'k is 0; it must be at least 1.'
    """

    def __init__(self, message: str, found: Any = _ABSENT, advice: str = "") -> None:
        if found is not _ABSENT:
            message = f"{arg(message)} is {found!r}; {advice}."
        super().__init__(message)

    def __str__(self) -> str:
        """Return the message for somebody who called a function."""
        return _MARKED.sub(lambda mark: mark[2], self.args[0])

    def as_typed(self) -> str:
        """Return the message for somebody who wrote a configuration file or options."""
        return _MARKED.sub(lambda mark: f"{mark[1]}.{mark[2]}" if mark[1] else mark[2], self.args[0])

    def rename(self, change: Callable[[str, str], tuple[str, str]]) -> None:
        """Replace (section, name) of every marked argument."""
        self.args = (_MARKED.sub(lambda mark: arg(*change(mark[1], mark[2])[::-1]), self.args[0]),)


class ConfigError(LightsaeError):
    """A setting has a value that cannot work, or two settings contradict each other."""


class ModelError(LightsaeError):
    """A language model cannot be found, loaded or placed."""


class SiteError(LightsaeError):
    """A hook site does not exist in the model, or is not the one that an SAE belongs to."""


class CorpusError(LightsaeError):
    """A dataset or an activation file is missing, empty, or lacks what was asked of it."""


class CheckpointError(LightsaeError):
    """A training checkpoint is missing, damaged, or of another architecture."""


class FormatError(LightsaeError):
    """An exported SAE is missing, damaged, or of a format that cannot be read."""


class ActivationError(LightsaeError):
    """The activations hold a NaN or an infinity."""


@contextmanager
def under(prefix: str = "", **called: str) -> Iterator[None]:
    """Say where the arguments in an error's message were written, in terms of the caller's own arguments.

    Args:
        prefix: Put before every name: `mechanism` makes `k` `mechanism.k`.
        called: What the caller calls an argument: `name_or_path="model"`.

    Example:
        >>> with under("mechanism"):
        ...     raise ConfigError("k", 0, "it must be at least 1")
        Traceback (most recent call last):
        lightsae.errors.ConfigError: mechanism.k is 0; it must be at least 1.
    """

    def change(section: str, name: str) -> tuple[str, str]:
        first, dot, rest = name.partition(".")
        name = called.get(first, first) + dot + rest
        return section, f"{prefix}.{name}" if prefix and not section else name

    try:
        yield
    except LightsaeError as error:
        error.rename(change)
        raise


@contextmanager
def section(name: str) -> Iterator[None]:
    """Say in which section of a configuration file the arguments stand that no section was said of yet.

    `str(error)` leaves it out, for a person in a notebook has no sections; the command line prints `as_typed()`.

    Example:
        >>> try:
        ...     with section("data"):
        ...         raise ConfigError("context_size", 1, "a row needs at least 2 tokens")
        ... except ConfigError as error:
        ...     print(error, error.as_typed(), sep=chr(10))
        context_size is 1; a row needs at least 2 tokens.
        data.context_size is 1; a row needs at least 2 tokens.
    """
    try:
        yield
    except LightsaeError as error:
        error.rename(lambda known, argument: (known or name, argument))
        raise


@contextmanager
def reading(kind: type[LightsaeError], what: str, advice: str = "") -> Iterator[None]:
    """Make one line of whatever the library of others raises that reads a file.

    Readers of Parquet, NumPy, SQLite and other files raise what they come upon in a damaged one: errors of the system,
    of thrift, of Python's own parser.

    Args:
        kind: The error to raise; one that is a LightsaeError already passes.
        what: What cannot be read: "a.parquet is not a readable parquet file".
        advice: What to do instead, behind it.

    Example:
        >>> with reading(FormatError, "a.npy is not a readable file", "copy it again"):
        ...     raise EOFError("no data" + chr(10) + "left")
        Traceback (most recent call last):
        lightsae.errors.FormatError: a.npy is not a readable file (no data left); copy it again.
    """
    try:
        yield
    except LightsaeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        reason = reason if len(reason) <= 200 else f"{reason[:200]}..."
        raise kind(f"{what} ({reason}){f'; {advice}' if advice else ''}.") from error


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known name closest to `wrong`, or an empty string where none is close.

    Example:
        >>> did_you_mean("topk", ["TopK", "ReLU"])
        " Did you mean 'TopK'?"
    """
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(wrong.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def listed(names: Sequence[str], most: int) -> str:
    """Return names as a clause of a message; of many the first ones.

    >>> listed(["a", "b"], 2), listed(["a", "b", "c", "d"], 2)
    ('a, b', 'a, b and 2 more')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
