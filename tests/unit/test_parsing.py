"""JSON and YAML from others: the right values, or a ValueError of one line; what asks for too much is refused early."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightsae.parsing import (
    DEEPEST,
    BoundedLoader,
    parse_json,
    parse_json_of_others,
    parse_yaml,
    read_bytes,
    read_json,
    read_yaml,
)

# Nine lines that stand for a billion values, as a list and as keys that are merged.
BOMB = "\n".join(
    ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)],
)
MERGED = "\n".join(
    ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 10)],
)
CHAIN = "\n".join(["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 100)])


def refused(parse: Callable[[Any], Any], text: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"a": [1, 2.5, null, true, "\\ud83d\\ude00"]}', {"a": [1, 2.5, None, True, "😀"]}),
        (b'\xef\xbb\xbf{"n": 18446744073709551616}', {"n": 2**64}),
        ("[" * DEEPEST + "1" + "]" * DEEPEST, None),
    ],
)
def test_json(text: str | bytes, values: object) -> None:
    assert parse_json(text) == (json.loads(text) if values is None else values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        (b"\xff", "can't decode byte 0xff"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "more than 64 levels deep"),
        ("[" * 200_000, "more than 64 levels deep"),
        ('{"a":' * 200_000, "more than 64 levels deep"),
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' stands there twice"),
        ('[{"a": {"b": 1, "b": 2}}]', "the key 'b' stands there twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "a number is too large: 1e999"),
        ("9" * 4000, "a number has 4,000 digits"),
        ("9" * 5000, "a number has 5,000 digits"),
        ('["\\ud800"]', "surrogates not allowed"),
        ('{"\\uDFFF": 1}', "surrogates not allowed"),
    ],
)
def test_json_that_is_refused(text: str | bytes, message: str) -> None:
    refused(parse_json, text, message)


def test_numbers_that_are_none_where_python_wrote_them() -> None:
    assert str(parse_json("[NaN, Infinity, 1e999]", finite=False)) == "[nan, inf, inf]"
    refused(lambda text: parse_json(text, finite=False), "9" * 400, "400 digits")


def test_json_of_a_corpus_is_taken_as_it_is() -> None:
    assert parse_json_of_others(b'{"a": 1, "a": "\xff\\ud800"}') == {"a": "�\ud800"}
    assert parse_json_of_others(b"\xef\xbb\xbf[]") == []
    refused(parse_json_of_others, b"[" * 200_000, "levels deep")
    refused(parse_json_of_others, b"{", "Expecting property name")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a: 1e-4\nb: .inf\nc: 1_000\nd: 0x10\ne: 010", {"a": 1e-4, "b": float("inf"), "c": 1000, "d": 16, "e": 8}),
        ("a: 2001-12-14\nb: 2001-99-99\nc: yes\nd: ~", {"a": "2001-12-14", "b": "2001-99-99", "c": True, "d": None}),
        ("a: &x {b: [1]}\nc: {<<: *x, d: *x}", {"a": {"b": [1]}, "c": {"b": [1], "d": {"b": [1]}}}),
        ("[[1, a: 2], {a: 3}, {a: 4}]", [[1, {"a": 2}], {"a": 3}, {"a": 4}]),
        ("a: !!str 12\nb: ! x", {"a": "12", "b": "x"}),
        ("", None),
        (f"a: {'x' * 5000}\nb: '{'1' * 5000}'", {"a": "x" * 5000, "b": "1" * 5000}),
        (f"a: {'0af' * 21}0", {"a": "0af" * 21 + "0"}),
    ],
)
def test_yaml(text: str, values: object) -> None:
    assert parse_yaml(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"line 6, column \d+: it stands for more than 100,000 values"),
        (MERGED, r"line 6, column \d+: it stands for more than 100,000 values"),
        (CHAIN, r"line 63, column \d+: it is more than 64 levels deep"),
        ("data: &a\n  x: *a\n", r"line 2, column 6: the alias \*a holds itself"),
        ("&a [*a]", r"line 1, column 5: the alias \*a holds itself"),
        ("[" * 200_000, "line 1, column 65: it is more than 64 levels deep"),
        ("{a: " * 200_000, "it is more than 64 levels deep"),
        ("- " * 5000 + "a", "it is more than 64 levels deep"),
        ("? " * 5000 + "a", "it is more than 64 levels deep"),
        ("[" + "1," * 100_001 + "]", "it stands for more than 100,000 values"),
        ("a: " + "1" * 5000, "line 1, column 4: a number has 5,000 digits; put it in quotes if it is text"),
        ("a: 0x" + "f" * 5000, "digits"),
        ("a: 1" + ":59" * 5000, "digits"),
        ("a: ." + "1" * 5000, "digits"),
        ("a: 0x_", "it is not YAML: invalid literal"),
        ("a:\n  m: 1\n  b: {c: [1]}\n  m: 2", "line 4, column 3: a.m stands there twice, and the first would be lost"),
        ("- {a: 1, a: 2}", "line 1, column 10: a stands there twice"),
        ("a: {b: {c: 1, c: 2}}", "a.b.c stands there twice"),
        ("a: !!python/object/apply:os.system [x]", "the tag tag:yaml.org,2002:python/object/apply:os.system is not"),
        ("a: !!set {b}", "the tag tag:yaml.org,2002:set is not read; leave it out"),
        ("a: !!int ''", "the tag tag:yaml.org,2002:int is not read"),
        ("a: [1", "line 1, column 6 is not YAML"),
        ("a: [1\n", "line 2, column 1 is not YAML"),
        ("a: *b", r"line 1, column 4 is not YAML: found undefined alias"),
        ("? [1, 2]\n: 3", "unhashable key"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: \ud800", "half of a surrogate pair"),
        ('a: "\\ud800"', "is not YAML"),
        ("a\0b", "control characters are not allowed"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    refused(parse_yaml, text, message)


def test_the_loader_raises_what_libraries_expect_of_one() -> None:
    for text in (BOMB, "0x_", "a: [", "&a [*a]"):
        with pytest.raises(yaml.YAMLError):
            yaml.load(text, Loader=BoundedLoader)


def test_files_are_read_in_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text('{"a": 1}')
    assert read_json(path) == read_yaml(path) == {"a": 1}
    refused(lambda path: read_bytes(path, 7), path, "it has 8 bytes, and at most 7 are read")
    assert read_bytes(path, 8) == b'{"a": 1}'
    # Without a byte on the disk.
    os.truncate(path, 1 << 30)
    for read in (read_json, read_yaml):
        refused(read, path, "it has 1,073,741,824 bytes, and at most")
    os.mkfifo(tmp_path / "pipe")
    refused(read_json, tmp_path / "pipe", "it is no regular file")
    refused(read_json, Path("/dev/zero"), "it is no regular file")
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match="directory"):
            read_json(missing)
