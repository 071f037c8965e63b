"""Mutations: of bytes, of JSON values, and of the header of a safetensors file."""

import copy
import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

# Values that a field does not expect.
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1.5, 1e-300, 1e308, -1e9, 2**31, 2**63, 2**64 + 7, 10**90),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        "x",
        "0",
        "NaN",
        "x" * 3000,
        "\ud800",
        "\0",
        "../../x",
        "/etc/passwd",
    ),
    *("cpu", "float64", "F64", "0" * 64, "f" * 64, [], {}, [[]], [None], [-1], [2**40], {"": {}}, ["x"] * 300),
    {"class_path": "os.system", "init_args": {"command": "true"}},
]
# Pieces that mean something to one of the parsers.
TOKENS = [
    *(
        b"NaN",
        b"Infinity",
        b"1e999",
        b"-1",
        b"null",
        b"true",
        b'"',
        b"\\ud800",
        b"\\u0000",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
    ),
    *(
        b":",
        b"\n",
        b"\t",
        b"\r",
        b"\0",
        b"\xff",
        b"\xc3",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"&a ",
        b"*a",
        b"<<: *a",
        b"!!python/object",
    ),
    *(b"!!int ''", b"? ", b"- ", b"--- ", b"%YAML 9.9", b"0x_", b"1" + b":59" * 40, b"#", b"'", b"|", b">"),
    *(b"9" * 400, b"9" * 5000, b"[" * 2000, b'{"a":' * 2000, b"- " * 2000, b"[" * 200_000),
]
Mutation = Callable[[random.Random, bytes], bytes]


def mutated(draw: random.Random, data: bytes, name: str) -> bytes:
    """Return a mutation of a file's content: one that suits its name, or one of bytes; now and then several."""
    for _ in range(1 if draw.random() < 0.7 else draw.randint(2, 5)):
        kinds: list[Mutation] = [_bytes]
        if name.endswith((".json", ".jsonl", ".ndjson")):
            kinds += [_json_values, _json_values]
        if name.endswith((".yaml", ".yml")):
            kinds += [_yaml_values]
        if name.endswith(".safetensors"):
            kinds += [_safetensors_header]
        data = draw.choice(kinds)(draw, data)
    return data


def _bytes(draw: random.Random, data: bytes) -> bytes:
    start = draw.randint(0, len(data))
    stop = min(len(data), start + draw.choice([0, 1, 1, 4, 16, 256]))
    match draw.randint(0, 6):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + data[stop:]
        case 2:
            return data[:start] + data[start:stop] * draw.choice([2, 3, 100]) + data[stop:]
        case 3:
            return data[:start] + draw.choice(TOKENS) + data[stop:]
        case 4:
            return data[:start] + draw.randbytes(stop - start) + data[stop:]
        case 5:
            return data[stop:] + data[start:stop] + data[:start]
        case _:
            flipped = bytearray(data)
            for _ in range(draw.choice([1, 1, 2, 8])):
                if flipped:
                    flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            return bytes(flipped)


def _json_values(draw: random.Random, data: bytes) -> bytes:
    """Change a value of a JSON document, or of a line of JSON lines."""
    lines = data.split(b"\n")
    number = draw.randrange(len(lines))
    for part in (data, lines[number]):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        changed = _written(draw, _changed(draw, value))
        return changed if part is data else b"\n".join([*lines[:number], changed, *lines[number + 1 :]])
    return _bytes(draw, data)


def _yaml_values(draw: random.Random, data: bytes) -> bytes:
    """Put another value behind one of the keys."""
    places = [match.end() for match in re.finditer(rb":[ \n]", data)]
    if not places:
        return _bytes(draw, data)
    place = draw.choice(places)
    value = _written(draw, draw.choice(NASTY)) if draw.random() < 0.7 else draw.choice(TOKENS)
    end = re.compile(rb"[,}\n]|$").search(data, place)
    return data[:place] + value + (data[end.start() :] if end else b"")


def _safetensors_header(draw: random.Random, data: bytes) -> bytes:
    if len(data) < 8:
        return data
    (size,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + size], data[8 + size :]
    header = _json_values(draw, header)
    said = len(header) if draw.random() < 0.8 else draw.choice([0, 7, len(header) + 1, 2**31, 2**63, 2**64 - 1])
    return struct.pack("<Q", said) + header + rest


def _changed(draw: random.Random, value: Any) -> Any:
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return draw.choice(NASTY)
    holder, key = draw.choice(places)
    match draw.randint(0, 4):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [holder[key]] if draw.random() < 0.5 else {"a": holder[key]}
        case 2:
            other, place = draw.choice(places)
            holder[key] = copy.deepcopy(other[place])
        case _:
            holder[key] = draw.choice(NASTY)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _written(draw: random.Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=True, indent=draw.choice([None, None, 2]))
    if draw.random() < 0.05:
        # The same key twice.
        text = re.sub(r'("\w+"): ([^\[{,}]+)', r"\1: \2, \1: \2", text, count=1)
    return text.encode()
