"""Reads JSON and YAML that somebody else may have written: in bounds, and without guessing what was meant.

Both readers answer with plain values or with a ValueError of one line; the caller, who knows what the text is, makes an
error of `errors.py` of it. Bounded are the size, the depth, the digits of a number, and what the aliases of YAML
stand for: nine lines can ask for a billion values. Refused are keys that stand twice, since one of them would be lost,
halves of surrogate pairs, which no file can hold, and NaN and infinity in JSON, which has no such numbers.
"""

import json
import math
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

# Far above what a file of ours or a person's has, far below what exhausts the stack of a reader.
DEEPEST = 64
MOST_BYTES = 256 << 20
# For tables that are written as JSON: counts by text, verdicts of all features.
MOST_BYTES_OF_TABLES = 1 << 30
_MOST_YAML = 4 << 20
# What a text stands for once each alias is written out.
_MOST_NODES = 100_000
# 2^64 has 20.
_MOST_DIGITS = 100
_NUMBER = re.compile(r"[-+.]?[0-9][0-9a-fxob_.:+-]*", re.IGNORECASE)
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return what a regular file holds.

    Raises:
        OSError: It cannot be read.
        ValueError: It is a pipe or a device, or holds more than `most` bytes.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        if (size := path.stat().st_size) > most:
            raise ValueError(f"it has {size:,} bytes, and at most {most:,} are read")
        return file.read(most)


def read_json(path: Path, *, finite: bool = True, most: int = MOST_BYTES) -> Any:
    """Read a JSON file; see `parse_json`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not JSON, or beyond the bounds.
    """
    return parse_json(read_bytes(path, most), finite=finite)


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    r"""Return the values of a JSON text.

    Args:
        text: Bytes are UTF-8.
        finite: Whether to refuse NaN and infinity, which Python writes, and reads, where JSON has no number.

    Raises:
        ValueError: It is not JSON, or beyond the bounds; one line.

    Example:
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' stands there twice
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    numbers: dict[str, Any] = {"parse_float": _finite, "parse_constant": _refuse_constant} if finite else {}
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_int=_integer, **numbers)
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    if _HALF_PAIR.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def parse_json_entries(text: str | bytes) -> list[Any]:
    r"""Return the entries of a text that is one JSON list, or JSON Lines; empty lines are passed over.

    Raises:
        ValueError: It is neither, or beyond the bounds; one line, which says which line it is.

    Example:
        >>> parse_json_entries('[1, 2]'), parse_json_entries('{"a": 1}\n\n{"a": 2}')
        ([1, 2], [{'a': 1}, {'a': 2}])
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    if text.lstrip()[:1] == "[":
        try:
            entries = parse_json(text)
        except ValueError as error:
            raise ValueError(f"it is not valid JSON ({error})") from None
        assert isinstance(entries, list)
        return entries
    entries = []
    # Not splitlines(): JSON strings may hold characters at which that splits.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entries.append(parse_json(line))
            except ValueError as error:
                raise ValueError(f"line {number} is not valid JSON ({error})") from None
    return entries


def with_none_for_nan(value: Any) -> Any:
    """Return nested values with None for what JSON has no number for: NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: with_none_for_nan(one) for key, one in value.items()}
    return [with_none_for_nan(one) for one in value] if isinstance(value, list | tuple) else value


def parse_json_of_others(text: str | bytes) -> Any:
    """Return the values of a JSON text that need not be ours to judge: one document of a corpus.

    Bytes that are no UTF-8 are replaced; of a repeated key the last counts; numbers are as Python reads them.

    Raises:
        ValueError: It is not JSON, or beyond the bounds.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig", errors="replace")
    try:
        return json.loads(text)
    except RecursionError:
        raise _too_deep() from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file; see `parse_yaml`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not YAML, or beyond the bounds.
    """
    return parse_yaml(read_bytes(path, _MOST_YAML).decode())


def parse_yaml(text: str) -> Any:
    """Return the values of a YAML text: those that the command line reads from a configuration.

    Raises:
        ValueError: It is not YAML, or beyond the bounds; one line, with the place.

    Example:
        >>> parse_yaml("a: &a [*a]")
        Traceback (most recent call last):
        ValueError: line 1, column 8: the alias *a holds itself
    """
    try:
        return yaml.load(text, Loader=BoundedLoader)
    except yaml.YAMLError as error:
        raise ValueError(_in_one_line(error, text)) from None


class BoundsError(yaml.MarkedYAMLError):  # type: ignore[misc]
    """YAML that asks for too much, or says a thing twice."""


class BoundedLoader(_PARSER):  # type: ignore[misc, valid-type]
    """The loader of `parse_yaml`, for libraries that take one: within bounds, and raising YAMLErrors alone.

    Numbers are those of jsonargparse, for which 1e-4 is one, and dates are text.
    """

    def __init__(self, stream: str) -> None:
        _check_events(stream)
        super().__init__(stream)

    def get_single_data(self) -> Any:
        try:
            return super().get_single_data()
        except ValueError as error:
            # Of a number that matches the pattern and is none: 0x_.
            raise yaml.YAMLError(str(error)) from error


def _use_the_numbers_of_jsonargparse() -> None:
    left_out = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
    BoundedLoader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in left_out]
        for first, known in _PARSER.yaml_implicit_resolvers.items()
    }
    number = (
        r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:e[-+]?[0-9]+)?|[-+]?[0-9][0-9_]*e[-+]?[0-9]+|\.[0-9_]+(?:e[-+][0-9]+)?"
        r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?-i:inf|Inf|INF)|\.(?-i:nan|NaN|NAN))$"
    )
    BoundedLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(number, re.I), list("-+0123456789."))


_use_the_numbers_of_jsonargparse()


@dataclass
class _Open:
    """A node whose end was not read yet.

    Attributes:
        anchor: Its name for aliases.
        is_mapping: Whether every other child is a key.
        nodes: What it holds so far, itself included and each alias written out.
        height: Of what it holds.
        keys: Those of a mapping.
        key: The one whose value comes next; None: a key comes next.
    """

    anchor: str | None = None
    is_mapping: bool = False
    nodes: int = 1
    height: int = 0
    keys: set[str] = field(default_factory=set)
    key: str | None = None

    def take(self, nodes: int, height: int, name: str = "") -> None:
        """Count a child in; of a mapping, `name` is that of a key."""
        self.nodes += nodes
        self.height = max(self.height, height + 1)
        if self.is_mapping:
            self.key = name if self.key is None else None


def _check_events(text: str) -> None:
    """Raise where a text is beyond the bounds; nothing is built of it, so that this costs what the text has."""
    if len(text) > _MOST_YAML:
        raise BoundsError(problem=f"it has {len(text):,} characters, and at most {_MOST_YAML:,} are read")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BoundsError(problem="it holds half of a surrogate pair, which is no text") from None
    stack, closed = [_Open()], dict[str, tuple[int, int]]()
    for event in yaml.parse(text, Loader=_PARSER):
        above = stack[-1]
        if getattr(event, "tag", None) not in (None, "!", "tag:yaml.org,2002:str"):
            raise BoundsError(problem=f"the tag {event.tag} is not read; leave it out", problem_mark=event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            depth, nodes = len(stack) - 1, 1
        elif isinstance(event, yaml.CollectionEndEvent):
            if above.anchor is not None:
                closed[above.anchor] = above.nodes, above.height
            stack.pop()
            stack[-1].take(above.nodes, above.height)
            continue
        elif isinstance(event, yaml.AliasEvent):
            if any(node.anchor == event.anchor for node in stack):
                raise BoundsError(problem=f"the alias *{event.anchor} holds itself", problem_mark=event.start_mark)
            nodes, height = closed.get(event.anchor, (1, 0))
            above.take(nodes, height)
            depth = len(stack) + height
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(event, stack)
            if event.anchor is not None:
                closed[event.anchor] = 1, 0
            above.take(1, 0, event.value)
            depth, nodes = len(stack), 1
        else:
            continue
        if depth > DEEPEST:
            raise BoundsError(problem=f"it is more than {DEEPEST} levels deep", problem_mark=event.start_mark)
        if sum(node.nodes for node in stack) + nodes > _MOST_NODES:
            what = f"it stands for more than {_MOST_NODES:,} values"
            raise BoundsError(problem=what, problem_mark=event.start_mark)


def _check_scalar(event: Any, stack: list[_Open]) -> None:
    above = stack[-1]
    if above.is_mapping and above.key is None:
        if event.value in above.keys:
            path = ".".join([*(node.key for node in stack[:-1] if node.key), event.value])
            problem = f"{path} stands there twice, and the first would be lost; rename one"
            raise BoundsError(problem=problem, problem_mark=event.start_mark)
        above.keys.add(event.value)
    if event.implicit[0] and len(event.value) > _MOST_DIGITS and _NUMBER.fullmatch(event.value):
        problem = f"a number has {len(event.value):,} digits; put it in quotes if it is text"
        raise BoundsError(problem=problem, problem_mark=event.start_mark)


def _in_one_line(error: Exception, text: str) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    place, problem, lines = "it", " ".join(problem.split()), text.split("\n")
    if mark is not None:
        # libyaml has the end of a text on a line of its own.
        line, column = (mark.line, mark.column) if mark.line < len(lines) else (len(lines) - 1, len(lines[-1]))
        place = f"line {line + 1}, column {column + 1}"
    if isinstance(error, BoundsError):
        return problem if mark is None else f"{place}: {problem}"
    return f"{place} is not YAML: {problem}"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands there twice")
    return values


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number is too large: {text[:20]}")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _check_depth(value: Any) -> None:
    level = _holders([value])
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in _holders(one.values() if isinstance(one, dict) else one)]
    if level:
        raise _too_deep()


def _holders(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _too_deep() -> ValueError:
    return ValueError(f"it is more than {DEEPEST} levels deep")
