"""The benchmark beside other libraries: our own runner at a tiny size, and what a table says of the last one."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("speed.__main__")


def rounds(*speeds: float, **figures: float) -> list[dict]:
    others = {"version": "1", "peak_mib": 100.0, "lm_tokens_per_token": 1.0, **figures}
    return [{"tokens_per_second": value, "tokens_per_cpu_second": value, **others} for value in speeds]


def test_ours_runs_and_is_compared_with_the_last_table(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    last, absent = tmp_path / "speed.json", tmp_path / "no" / "python"
    last.write_text(json.dumps({speed.machine(1): {"tiny, TopK": {"lightsae": rounds(1e9, 1e9)}}}))
    options = ["--tiny", "--only", "TopK", "--rounds", "1", "--peers", str(absent), "--last", str(last), "--keep"]
    monkeypatch.setattr(sys, "argv", ["speed", *options])
    speed.main()
    printed = capsys.readouterr()
    (row,) = (line for line in printed.out.splitlines() if line.startswith("| tiny"))
    assert "lightsae" in row
    assert row.endswith("0.00 FELL |")
    assert "not installed" in printed.err
    (kept,) = json.loads(last.read_text()).values()
    (measured,) = kept["tiny, TopK"]["lightsae"]
    # Whole fills: what the language model ran on is what was trained on.
    assert measured["tokens"] == 256
    assert measured["lm_tokens_per_token"] == 1.0
    assert kept["tiny, TopK"]["limit"]


def test_a_table_has_ratios_targets_and_what_fell(speed: ModuleType) -> None:
    (case,) = (case for case in speed.TINY if case.targets)
    measured = {
        case.name: {
            "lightsae": rounds(200.0, 210.0, 190.0),
            "sae_lens": rounds(100.0, 99.0, 101.0, peak_mib=300.0),
            "sparsify": [],
            "limit": rounds(400.0),
        }
    }
    last = {case.name: {"lightsae": rounds(215.0, 220.0, 225.0), "sae_lens": rounds(102.0, 101.0, 100.0)}}
    _, _, ours, theirs = (line.strip("| ").split(" | ") for line in speed.table([case], measured, last).splitlines())
    assert ours[1:4] == ["lightsae 1", "200", "200"]
    assert [ours[8], ours[9]] == ["50% (50%)", "0.91"]  # 20 less, and the rounds lie as far apart
    assert theirs[1:10] == ["sae_lens 1", "100", "100", "2.00 (2.00)", "1", "300", "1.00", "25% (25%)", "0.99"]
    fallen = {case.name: {**measured[case.name], "lightsae": rounds(190.0, 191.0, 189.0)}}
    assert "0.86 FELL" in speed.table([case], fallen, last)
    assert "FELL" not in speed.table([case], fallen, {})


def test_a_runner_that_fails_leaves_its_rows_empty(
    speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert speed.measure("limit", Path(sys.executable), tmp_path, 1) is None
    assert "limit failed: FileNotFoundError" in capsys.readouterr().err
