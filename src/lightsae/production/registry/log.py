"""The registry's log: who did what, when and why, one JSON object a line, each holding the hash of the line before.

    log.jsonl       every action, in order; lines are only ever added
    channels.json   how many lines of it count, the hash of the last of them, and what each channel has now

The log is the truth: what a channel has, and what it had before, is replayed from it. Replacing channels.json is what
makes an action happen: a line beyond those that it counts is an action that was cut short, and the next action records
its text and takes its place. The hashes show damage and careless changes; they are no signature against somebody who
writes both files anew.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightsae.errors import FormatError
from lightsae.formats.files import write_atomically

LOG, POINTER = "log.jsonl", "channels.json"
FORMAT_VERSION = 1
CHANNELS = ("staging", "production")
# What the first line says of the line before it.
START = "0" * 64


@dataclass
class State:
    """What a registry is at one moment.

    Attributes:
        entries: The actions that count, oldest first.
        lines: Their lines, as they are in the file.
        interrupted: What stands after them: an action that was cut short.
        published: Ids of versions, oldest first.
        channels: Versions of each channel, the present one last; a rollback takes it away.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    interrupted: bytes = b""
    published: list[str] = field(default_factory=list)
    channels: dict[str, list[str]] = field(default_factory=lambda: {channel: [] for channel in CHANNELS})

    def has(self, channel: str) -> str | None:
        """Return the present version of a channel."""
        return self.channels[channel][-1] if self.channels[channel] else None

    def was_in(self, channel: str, version: str) -> bool:
        """Return whether a version is in a channel, or was once."""
        return any(
            e["action"] == "promote" and (e["channel"], e["version"]) == (channel, version) for e in self.entries
        )


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
    content = (where / LOG).read_bytes() if (where / LOG).is_file() else b""
    *whole, torn = content.split(b"\n")
    count = pointer["entries"]
    state = State(lines=whole[:count], interrupted=b"\n".join([*whole[count:], torn]))
    problems = []
    if len(whole) < count:
        problems.append(f"{LOG} has {len(whole)} lines, but {POINTER} counts {count}: lines were deleted")
    if len(whole) > count + 1:
        problems.append(f"{LOG} has {len(whole)} lines, but {POINTER} counts {count}: {POINTER} is an older one")
    problems += _follow(state)
    if len(whole) >= count and (last := _last_hash(state.lines)) != pointer["hash"]:
        problems.append(
            f"line {count} of {LOG} was changed: its hash is {last[:12]}, but {POINTER} says {pointer['hash'][:12]}"
        )
    if not problems:
        for channel in CHANNELS:
            if (says := pointer["channels"].get(channel)) != (has := state.has(channel)):
                problems.append(f"{POINTER} was changed: {channel} is {_short(says)}, but by {LOG} it is {_short(has)}")
    return state, problems


def commit(where: Path, state: State, entry: dict[str, Any]) -> None:
    """Add an action to the log, then make it count. A kill at any moment leaves the registry as before, or after.

    Raises:
        ConfigError: The disk is full, or there is no permission to write.
    """
    full = {"number": len(state.lines) + 1, "previous": _last_hash(state.lines), **entry}
    if state.interrupted:
        full["interrupted"] = state.interrupted.decode("utf-8", "replace")
    state.lines.append(json.dumps(full, ensure_ascii=False, allow_nan=False).encode())
    state.entries.append(full)
    _replay(state, full)
    state.interrupted = b""
    with write_atomically(where / LOG) as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in state.lines))
    pointer = {
        "format_version": FORMAT_VERSION,
        "entries": len(state.lines),
        "hash": _last_hash(state.lines),
        "channels": {channel: state.has(channel) for channel in CHANNELS},
    }
    with write_atomically(where / POINTER) as partial:
        partial.write_text(json.dumps(pointer, indent=2) + "\n", encoding="utf-8")


def _read_pointer(where: Path) -> dict[str, Any]:
    try:
        pointer = json.loads((where / POINTER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"entries": 0, "hash": START, "channels": {}}
    except ValueError as error:
        raise FormatError(f"{POINTER} is not valid JSON ({error})") from error
    kinds = {"format_version": int, "entries": int, "hash": str, "channels": dict}
    if not isinstance(pointer, dict) or any(not isinstance(pointer.get(k), kind) for k, kind in kinds.items()):
        raise FormatError(f"{POINTER} does not hold {', '.join(kinds)}")
    if pointer["format_version"] > FORMAT_VERSION:
        raise FormatError(
            f"{POINTER} has format version {pointer['format_version']}, and this lightsae reads up to "
            f"{FORMAT_VERSION} (pip install --upgrade lightsae)"
        )
    return pointer


def _follow(state: State) -> list[str]:
    """Parse and replay the lines; return what breaks the chain."""
    problems, before = [], START
    for number, line in enumerate(state.lines, 1):
        wanted, before = before, hashlib.sha256(line).hexdigest()
        try:
            entry = json.loads(line)
            told, previous = entry["number"], entry["previous"]
        except (ValueError, TypeError, KeyError):
            problems.append(f"line {number} of {LOG} is not an entry")
            continue
        if told != number:
            problems.append(f"line {number} of {LOG} is entry {told}: lines were deleted or moved")
            return problems
        if previous != wanted:
            problems.append(f"line {number - 1} of {LOG} was changed: line {number} holds another hash of it")
        try:
            _replay(state, entry)
        except (KeyError, IndexError, TypeError):
            problems.append(f"line {number} of {LOG} does not follow from the lines before it")
            continue
        state.entries.append(entry)
    return problems


def _replay(state: State, entry: dict[str, Any]) -> None:
    match entry["action"]:
        case "publish":
            state.published.append(entry["version"])
        case "promote":
            state.channels[entry["channel"]].append(entry["version"])
        case "rollback":
            state.channels[entry["channel"]].pop()
        case "restore":
            pass
        case other:
            raise KeyError(other)


def _last_hash(lines: list[bytes]) -> str:
    return hashlib.sha256(lines[-1]).hexdigest() if lines else START


def _short(version: str | None) -> str:
    return "empty" if version is None else str(version)[:12]
