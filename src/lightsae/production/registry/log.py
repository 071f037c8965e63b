"""The registry's log: who did what, when and why, one JSON object per line, in the order in which it happened.

    log.jsonl       every action; lines are only ever added
    channels.json   how many lines of it count, and what each channel has now

The log is the truth: what a channel has, and what it had before, is replayed from it. Replacing channels.json is what
makes an action happen: a line beyond those that it counts is an action that was cut short, and the next one takes its
place.

Found are deleted, moved and unreadable lines, lines that do not follow from those before them, and a channels.json that
says something else than the log. An edited line that still follows, such as another `who` or `why`, is not found: keep
the registry on the Hub, where each action is a commit, to know who changed what. (Format 1 chained the lines by hashes;
its registries are read, without looking at the hashes.)
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightsae.errors import FormatError
from lightsae.formats.files import write_atomically, write_json
from lightsae.parsing import parse_json, read_json

LOG, POINTER = "log.jsonl", "channels.json"
FORMAT_VERSION = 2
CHANNELS = ("staging", "production")


@dataclass
class State:
    """What a registry is at one moment.

    Attributes:
        entries: The actions that count, oldest first.
        interrupted: Whether a line stands after them: an action that was cut short.
        published: Ids of versions, oldest first.
        channels: Versions of each channel, the present one last; a rollback takes it away.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False
    published: list[str] = field(default_factory=list)
    channels: dict[str, list[str]] = field(default_factory=lambda: {channel: [] for channel in CHANNELS})

    def has(self, channel: str) -> str | None:
        """Return the present version of a channel."""
        return self.channels[channel][-1] if self.channels[channel] else None

    def channels_of(self, version: str) -> list[str]:
        """Return the channels whose present version this is."""
        return [channel for channel in CHANNELS if self.has(channel) == version]

    def was_in(self, channel: str, version: str) -> bool:
        """Return whether a version is in a channel, or was once."""
        return any(
            e["action"] == "promote" and (e["channel"], e["version"]) == (channel, version) for e in self.entries
        )

    def add(self, entry: dict[str, Any]) -> None:
        """Replay one action.

        Raises:
            KeyError, IndexError, TypeError, ValueError: It does not follow from those before it.
        """
        action, version = entry["action"], entry["version"]
        if not all(isinstance(entry[key], str) for key in ("time", "who", "action", "version", "why")):
            raise TypeError(entry)
        if re.fullmatch(r"\w{1,100}", version) is None:
            # A folder has its name.
            raise ValueError(version)
        if action == "publish":
            self.published.append(version)
        elif action == "promote":
            self.channels[entry["channel"]].append(version)
        elif action == "rollback":
            self.channels[entry["channel"]].pop()
            if self.has(entry["channel"]) != version:
                raise ValueError(version)
        elif action != "restore":
            raise ValueError(action)
        self.entries.append(entry)


def read_state(where: Path, shown: str) -> State:
    """Read log and channels.

    Args:
        where: The registry's folder.
        shown: The registry as the user wrote it.

    Raises:
        FormatError: They were changed or damaged, or are of a newer version.
    """
    state, problems = inspect_log(where)
    if problems:
        raise FormatError(
            f"The registry {shown!r} cannot be trusted: {problems[0]}. See all: lightsae registry verify --registry "
            f"{shown}; then restore {LOG} and {POINTER} from a copy."
        )
    return state


def inspect_log(where: Path) -> tuple[State, list[str]]:
    """Return the state as far as it can be read, and everything that is wrong with it."""
    # channels.json first: what is added to the log meanwhile is beyond what it counts.
    try:
        pointer = _read_pointer(where)
    except FormatError as error:
        return State(), [str(error)]
    *lines, torn = _content(where).split(b"\n")
    count, state, problems = pointer["entries"], State(), []
    state.interrupted = len(lines) > count or bool(torn)
    if len(lines) < count:
        problems.append(f"{LOG} has {len(lines)} lines, but {POINTER} counts {count}: lines were deleted")
    if len(lines) > count + 1:
        problems.append(f"{LOG} has {len(lines)} lines, but {POINTER} counts {count}: {POINTER} is an older one")
    for number, line in enumerate(lines[:count], 1):
        try:
            entry = parse_json(line)
            if entry["number"] != number:
                moved = f"line {number} of {LOG} is entry {entry['number']}: lines were deleted or moved"
                return state, [*problems, moved]
        except (ValueError, TypeError, KeyError):
            problems.append(f"line {number} of {LOG} is not an entry")
            continue
        try:
            state.add(entry)
        except (KeyError, IndexError, TypeError, ValueError):
            problems.append(f"line {number} of {LOG} does not follow from the lines before it")
    for channel in () if problems else CHANNELS:
        if (says := pointer["channels"].get(channel)) != (has := state.has(channel)):
            problems.append(f"{POINTER} was changed: {channel} is {_short(says)}, but by {LOG} it is {_short(has)}")
    return state, problems


def commit(where: Path, state: State, entry: dict[str, Any]) -> None:
    """Add an action to the log, then make it count. A kill at any moment leaves the registry as before, or after.

    Raises:
        ConfigError: The disk is full, or there is no permission to write.
    """
    kept = _content(where).split(b"\n")[: len(state.entries)]
    entry = {"number": len(kept) + 1, **entry}
    state.add(entry)
    line = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
    with write_atomically(where / LOG) as partial:
        partial.write_bytes(b"\n".join([*kept, line, b""]))
    pointer = {
        "format_version": FORMAT_VERSION,
        "entries": len(state.entries),
        "channels": {channel: state.has(channel) for channel in CHANNELS},
    }
    write_json(where / POINTER, pointer)
    state.interrupted = False


def _content(where: Path) -> bytes:
    return (where / LOG).read_bytes() if (where / LOG).is_file() else b""


def _read_pointer(where: Path) -> dict[str, Any]:
    try:
        pointer = read_json(where / POINTER)
    except FileNotFoundError:
        return {"entries": 0, "channels": {}}
    except ValueError as error:
        raise FormatError(f"{POINTER} is not valid JSON ({error})") from error
    kinds = {"format_version": int, "entries": int, "channels": dict}
    if not isinstance(pointer, dict) or any(type(pointer.get(k)) is not kind for k, kind in kinds.items()):
        raise FormatError(f"{POINTER} does not hold {', '.join(kinds)}")
    if pointer["entries"] < 0:
        raise FormatError(f"{POINTER} counts {pointer['entries']} entries")
    if pointer["format_version"] > FORMAT_VERSION:
        raise FormatError(
            f"{POINTER} has format version {pointer['format_version']}, and this lightsae reads up to "
            f"{FORMAT_VERSION} (pip install --upgrade lightsae)"
        )
    return pointer


def _short(version: str | None) -> str:
    return "empty" if version is None else str(version)[:12]
