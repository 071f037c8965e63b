"""Reads the scripts of a dashboard back, as a browser would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def received() -> Callable[[Path], Any]:
    """Return a function from a script to the value that it hands over."""

    def read(path: Path) -> Any:
        text = path.read_bytes().decode("ascii")
        assert text.startswith("lightsae.receive(")
        return json.loads(f"[{text.removeprefix('lightsae.receive(').rstrip().removesuffix(')')}]")[1]

    return read
