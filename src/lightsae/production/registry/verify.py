"""Everything that is wrong with a registry: files rehashed, the log followed, the channels replayed from it."""

from dataclasses import dataclass
from pathlib import Path

from lightsae.production.registry.hub import local_copy
from lightsae.production.registry.log import CHANNELS, inspect_log
from lightsae.production.registry.store import locate_registry, unpublished
from lightsae.production.registry.version import SHORT, problems_of


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        versions: Published ones.
        entries: Of the log.
        problems: What is wrong, a line each.
        notes: What an action that was cut short left; the next one clears it away.
    """

    versions: int
    entries: int
    problems: list[str]
    notes: list[str]


def verify(registry: str | Path) -> Verified:
    """Rehash all files of all versions, and check log and channels.

    Args:
        registry: Folder of the registry, or `hub:org/name`.

    Raises:
        FormatError: There is no registry.
    """
    with local_copy(registry) as here:
        where = locate_registry(here)
    state, problems = inspect_log(where)
    for version in state.published:
        has = [channel for channel in CHANNELS if state.has(channel) == version]
        named = f"version {version[:SHORT]}" + (f" ({', '.join(has)})" if has else "")
        problems += [f"{named}: {problem}" for problem in problems_of(where, version)]
    # Without a log that can be followed, nothing says what was published.
    notes = (
        [] if problems else [f"version {v[:SHORT]}: its publishing was cut short" for v in unpublished(where, state)]
    )
    if state.interrupted and not problems:
        notes.append("the last line of the log: its action was cut short, and did not happen")
    return Verified(len(state.published), len(state.entries), problems, notes)
