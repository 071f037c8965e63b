"""`lightsae superpose`: files, table, and mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
SHORT = ("--steps=3", "--restarts=1", "--batch=8")


def test_it_leaves_a_picture_and_numbers(lightsae: Run, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("sparsities: [0.0, 0.5]\nfeatures: 4\n")
    ended = lightsae("superpose", "--config", "c.yaml", *SHORT, "--features", "6")
    assert ended.code == 0, ended.err
    assert "of 6" in ended.out
    folder = tmp_path / "lightning_logs/superposition_0"
    assert (folder / "superposition.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((folder / "superposition.json").read_text())
    assert [model["sparsity"] for model in told["models"]] == [0.0, 0.5]
    assert len(told["models"][0]["W"][0]) == told["settings"]["features"] == 6
    assert list(folder.glob("events.*"))
    lightsae("superpose", *SHORT)
    assert (tmp_path / "lightning_logs/superposition_1").is_dir()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--features", "x"), "features is 'x'; write a whole number."),
        (("--features", "0"), "features is 0; write 1 or more."),
        (("--featurs", "3"), "Did you mean '--features'?"),
        (("--config", "none.yaml"), "'none.yaml', which does not exist"),
        (("--sparsities", "[0.1,1.5]"), "write probabilities"),
    ],
)
def test_mistakes(lightsae: Run, options: tuple[str, ...], says: str) -> None:
    ended = lightsae("superpose", *options)
    assert ended.code == 2
    assert says in ended.err
    assert ended.err.count("\n") == 1
    assert ended.new == []


def test_help(lightsae: Run) -> None:
    ended = lightsae("superpose", "--help")
    assert ended.code == 0
    assert "--sparsities" in ended.out
