import hashlib
import json
import random
from pathlib import Path

import pytest

from lightsae.errors import FormatError
from lightsae.production.registry.log import CHANNELS, State, commit, inspect_log, read_state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of two versions, promoted one after the other."""
    state = State()
    for version in ("a" * 64, "b" * 64):
        commit(tmp_path, state, _entry("publish", version))
    for version in ("a" * 64, "b" * 64):
        commit(tmp_path, state, _entry("promote", version, channel="production"))
    return tmp_path


def _entry(action: str, version: str, **more: str) -> dict[str, str]:
    return {"time": "2026-01-02T03:04:05+00:00", "who": "ann", "action": action, "version": version, "why": "", **more}


def test_channels_are_replayed_from_the_log(folder: Path) -> None:
    state = read_state(folder, "r")
    assert state.channels == {"staging": [], "production": ["a" * 64, "b" * 64]}
    assert state.was_in("production", "a" * 64)
    assert not state.was_in("staging", "a" * 64)
    told = json.loads((folder / "channels.json").read_text())
    assert told["channels"] == {"staging": None, "production": "b" * 64}


def test_any_sequence_of_actions_is_read_back_as_it_was(tmp_path: Path) -> None:
    draw, state = random.Random(0), State()
    expected: dict[str, list[str]] = {channel: [] for channel in CHANNELS}
    commit(tmp_path, state, _entry("publish", "v0"))
    for step in range(60):
        channel = draw.choice(CHANNELS)
        if len(expected[channel]) > 1 and draw.random() < 0.4:
            expected[channel].pop()
            commit(tmp_path, state, _entry("rollback", expected[channel][-1], channel=channel))
        else:
            expected[channel].append(f"v{step}")
            commit(tmp_path, state, _entry("promote", f"v{step}", channel=channel))
        if step % 10 == 0:
            state = read_state(tmp_path, "r")
        assert state.channels == expected
    assert read_state(tmp_path, "r").channels == expected


def test_an_edited_line_that_does_not_follow_is_found(folder: Path) -> None:
    """What follows from the lines before it is not: the log is plain, and a Hub repository has commits."""
    log = folder / "log.jsonl"
    log.write_text(log.read_text().replace("ann", "bob", 1))
    assert inspect_log(folder)[1] == []
    commit(folder, read_state(folder, "r"), _entry("rollback", "a" * 64, channel="production"))
    whole = log.read_text()
    for line, old, new in (
        (4, "bbbb", "cccc"),
        (5, "aaaa", "cccc"),
        (5, "rollback", "rollbak"),
        (4, "production", "x"),
    ):
        lines = whole.splitlines()
        lines[line - 1] = lines[line - 1].replace(old, new)
        log.write_text("\n".join(lines) + "\n")
        problems = inspect_log(folder)[1]
        if (line, old) == (4, "bbbb"):
            assert problems == []  # verify looks for the version's folder
            continue
        assert problems[0] == f"line {line} of log.jsonl does not follow from the lines before it"
        with pytest.raises(FormatError, match="cannot be trusted"):
            read_state(folder, "r")


def test_a_log_that_is_chained_by_hashes_is_read_and_goes_on(folder: Path) -> None:
    """As lightsae wrote them at first; its lines stay as they are."""
    lines, previous = [], "0" * 64
    for line in (folder / "log.jsonl").read_text().splitlines():
        number, *rest = json.loads(line).items()
        lines.append(json.dumps(dict([number, ("previous", previous), *rest, ("interrupted", "{"), ("more", 1)])))
        previous = hashlib.sha256(lines[-1].encode()).hexdigest()
    chained = "".join(f"{line}\n" for line in lines)
    (folder / "log.jsonl").write_text(chained)
    pointer = {"staging": None, "production": "b" * 64}
    told = {"format_version": 1, "entries": 4, "hash": previous, "channels": pointer}
    (folder / "channels.json").write_text(json.dumps(told))
    state = read_state(folder, "r")
    assert state.channels["production"] == ["a" * 64, "b" * 64]
    commit(folder, state, _entry("rollback", "a" * 64, channel="production"))
    assert read_state(folder, "r").has("production") == "a" * 64
    assert (folder / "log.jsonl").read_text().startswith(chained)


@pytest.mark.parametrize("line", range(4))
def test_a_deleted_line_is_found(folder: Path, line: int) -> None:
    lines = (folder / "log.jsonl").read_text().splitlines()
    del lines[line]
    (folder / "log.jsonl").write_text("".join(f"{text}\n" for text in lines))
    with pytest.raises(FormatError, match=r"has 3 lines, but channels\.json counts 4: lines were deleted"):
        read_state(folder, "r")


def test_swapped_and_unreadable_lines_are_found(folder: Path) -> None:
    a, b, *rest = (folder / "log.jsonl").read_text().splitlines()
    (folder / "log.jsonl").write_text("".join(f"{text}\n" for text in (b, a, *rest)))
    assert "line 1 of log.jsonl is entry 2" in inspect_log(folder)[1][0]
    (folder / "log.jsonl").write_text("".join(f"{text}\n" for text in (a, "no JSON", *rest)))
    assert "line 2 of log.jsonl is not an entry" in inspect_log(folder)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": {"staging": None, "production": "a" * 64}}, "production is aaaaaaaaaaaa, but by log.jsonl"),
        ({"entries": 2}, "channels.json is an older one"),
        ({"entries": 9}, "lines were deleted"),
        ({"format_version": 99}, "pip install --upgrade"),
        ({"entries": "4"}, "does not hold"),
    ],
)
def test_edited_channels_are_found(folder: Path, change: dict[str, object], message: str) -> None:
    pointer = json.loads((folder / "channels.json").read_text())
    (folder / "channels.json").write_text(json.dumps({**pointer, **change}))
    with pytest.raises(FormatError, match=message):
        read_state(folder, "r")


def test_channels_json_that_is_missing_or_damaged_is_found(folder: Path) -> None:
    (folder / "channels.json").write_text("{")
    with pytest.raises(FormatError, match="not valid JSON"):
        read_state(folder, "r")
    (folder / "channels.json").unlink()
    with pytest.raises(FormatError, match="counts 0"):
        read_state(folder, "r")


@pytest.mark.parametrize("tail", ['{"number": 5, "action": "prom', '{"number": 5, "action": "promote"}\n', "\xff"])
def test_the_next_action_takes_the_place_of_a_line_that_does_not_count(folder: Path, tail: str) -> None:
    with (folder / "log.jsonl").open("a", encoding="latin-1") as log:
        log.write(tail)
    state = read_state(folder, "r")
    assert state.interrupted
    assert state.has("production") == "b" * 64
    assert len(state.entries) == 4
    commit(folder, state, _entry("rollback", "a" * 64, channel="production"))
    after = read_state(folder, "r")
    assert after.has("production") == "a" * 64
    assert after.entries[-1]["number"] == 5
    assert not after.interrupted
    assert len((folder / "log.jsonl").read_bytes().splitlines()) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "../../elsewhere"},
        {"version": ".."},
        {"version": ""},
        {"version": ["a" * 64]},
        {"version": 7},
        {"who": None},
        {"why": 3},
        {"time": {}},
        {"action": ["publish"]},
    ],
)
def test_an_entry_of_other_types_or_of_a_folder_elsewhere_is_found(folder: Path, changes: dict[str, object]) -> None:
    lines = (folder / "log.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | changes)
    (folder / "log.jsonl").write_text("\n".join([*lines, ""]))
    assert inspect_log(folder)[1][0] == "line 1 of log.jsonl does not follow from the lines before it"


@pytest.mark.parametrize("line", ["[" * 5000, '{"number": 1, "number": 1}', "NaN", "1", '"number"'])
def test_a_line_that_is_no_entry_is_found(folder: Path, line: str) -> None:
    lines = (folder / "log.jsonl").read_text().splitlines()
    (folder / "log.jsonl").write_text("\n".join([line, *lines[1:], ""]))
    assert inspect_log(folder)[1][0] == "line 1 of log.jsonl is not an entry"


@pytest.mark.parametrize("count", [-1, True, "4", 10**90])
def test_a_count_that_is_none_is_found(folder: Path, count: object) -> None:
    pointer = json.loads((folder / "channels.json").read_text())
    (folder / "channels.json").write_text(json.dumps(pointer | {"entries": count}))
    assert inspect_log(folder)[1]
