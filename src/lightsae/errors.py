"""The mistakes a user can make. The command line prints the message alone and ends with exit code 2.

A message names the key as the user wrote it, what was found, and what to write instead.
"""

import difflib
from collections.abc import Iterable


class LightsaeError(ValueError):
    """Base of every error that a user can cause and mend."""


class ConfigError(LightsaeError):
    """A setting has a value that cannot work, or two settings contradict each other."""


class ModelError(LightsaeError):
    """A language model cannot be found, loaded or placed."""


class SiteError(LightsaeError):
    """A hook site does not exist in the model, or is not the one that a dictionary belongs to."""


class CorpusError(LightsaeError):
    """A dataset or an activation file is missing, empty, or lacks what was asked of it."""


class CheckpointError(LightsaeError):
    """A training checkpoint is missing, damaged, or of another architecture."""


class FormatError(LightsaeError):
    """An exported dictionary is missing, damaged, or of a format that cannot be read."""


class ActivationError(LightsaeError):
    """The activations hold a NaN or an infinity."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known name closest to `wrong`, or an empty string where none is close."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(wrong.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""
