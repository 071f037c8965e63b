"""Data as scripts: what a page may load from file://, where no browser lets it read files.

Each script calls `lightsae.receive(name, value)`. The value is JSON in plain ASCII without `<`, `>` and `&`: no text of
a corpus can end the script, open a comment or be taken for markup, whatever the file's encoding is taken to be.
"""

import json
import math
from pathlib import Path
from typing import Any

_DIGITS = 4
_HARMLESS = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def write_script(path: Path, name: str, value: Any) -> None:
    """Write a value to a script; `name` is what the page asks for it by."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"lightsae.receive({_json(name)},{_json(value)})\n", encoding="ascii")


def rounded(value: float | int | None) -> float | int | None:
    """Return a number with the digits that a page shows, counts whole; None where there is none, or no finite one."""
    if value is None or not math.isfinite(value):
        return None
    if isinstance(value, int):
        return value
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() else short


def plain(value: Any) -> Any:
    """Return a value of a table with all its numbers rounded; JSON has no NaN."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def _json(value: Any) -> str:
    # Inside JSON, <, > and & can only stand in strings.
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_HARMLESS)
