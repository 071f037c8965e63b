"""What `lightsae interpret` says at its end."""

from pathlib import Path
from typing import Any

import pytest

from helpers.fake_dictionary import fake_tables
from lightsae.analysis.dictionary.figures import above_chance, against, figures
from lightsae.cli.commands.interpret import _report


def summary_of(floor: list[str]) -> dict[str, Any]:
    tables = fake_tables(64)
    tiers = tables["features"]["tier"].to_pylist()
    floors = {"random directions": against(tiers, floor)}
    chance = {f"{kind}_coherence_by_chance": 0.01 for kind in ("window", "document")}
    neurons = {**figures(fake_tables(16)), "kind": "raw neurons", "difference": against(tiers, tiers[:16])}
    return {**figures(tables), **chance, "floors": floors, "above_chance": above_chance(floors), "neurons": neurons}


def said(floor: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    manifest = {"summary": summary_of(floor), "tokens": {"scores": 5000}}
    _report(Path("nowhere"), "ab" * 32, manifest)
    return capsys.readouterr().out


def test_where_a_floor_equals_the_score_there_is_no_headline(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(["high"] * 320 + ["unlabelled"] * 160, capsys)
    (row,) = (line for line in out.splitlines() if line.startswith("labelled, of the tested"))
    assert "not above chance here" in row
    assert row.count("66.7%") == 1, "of the neurons alone"
    assert "not above chance here: 66.7% of the features are labelled, 66.7% of random directions" in out
    assert "tiers are withheld" in out


def test_above_all_floors_the_share_stands_with_interval_number_and_difference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = said(["high"] * 5 + ["unlabelled"] * 475, capsys)
    assert "not above chance" not in out
    assert "66.7% [52.5%, 78.3%] of the tested features labelled" in out
    (row,) = (line for line in out.splitlines() if line.startswith("random directions"))
    assert row.split()[2:5] == ["1.0%", "480", "+65.6"]
    (median,) = (line for line in out.splitlines() if line.startswith("lower of precision and recall"))
    assert "(n = 48)" in median
