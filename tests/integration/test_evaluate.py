"""`lightsae evaluate`: the figures of a run's own validation, with their noise, beside an SAE that learned nothing."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_clearml import FakeClearML
from lightsae.analysis.evaluate.figures import DEFINITIONS
from lightsae.analysis.evaluate.report import read_report

SAE = "lightning_logs/version_0/sae"
TEXT = ("--model_batch_tokens", "256", "--dtype", "float32")


def run_of(fit: Callable[..., Any]) -> None:
    assert fit("--data.dtype float32").code == 0


def test_the_same_text_gives_what_the_validation_gave(fit: Callable[..., Any], lightsae: Any, tmp_path: Path) -> None:
    run_of(fit)
    config = "lightning_logs/version_0/config.yaml"
    assert lightsae("validate", "--config", config, "--ckpt_path", "last").code == 0
    ended = lightsae("evaluate", "--sae", SAE, "--tokens", "128", "--ce_tokens", "128", "--out", "e.json", *TEXT)
    assert ended.code == 0, ended.err
    validated = json.loads(next((tmp_path / "lightning_logs").rglob("validation.json")).read_text())
    figures = read_report(tmp_path / "e.json")[0].figures
    compared = 0
    for name, value in validated["figures"].items():
        short = name.removeprefix("val/")
        if short in figures:
            assert figures[short].value == pytest.approx(value, rel=2e-4, abs=2e-6), name
            compared += 1
    assert compared >= 15
    assert set(figures) == set(DEFINITIONS)
    assert all(figure.tokens > 0 for figure in figures.values())
    assert "documents, no intervals below 10" in ended.out
    assert all(figure.low is None for figure in figures.values())


def test_a_report_says_it_all_and_its_page_shows_it(fit: Callable[..., Any], lightsae: Any, tmp_path: Path) -> None:
    run_of(fit)
    sizes = ("--tokens", "1600", "--ce_tokens", "400")
    ended = lightsae("evaluate", "--sae", f"[{SAE}, {SAE}]", *sizes, "--out", "deep/e.json", *TEXT)
    assert ended.code == 0, ended.err
    assert ended.out.count("documents, 95% intervals over them") == 2
    first, second = read_report(tmp_path / "deep" / "e.json")
    assert first == second
    assert first.sae["variant"] == "TopK"
    assert first.text["documents"] >= 10
    fve = first.figures["fve"]
    assert fve.low is not None
    assert fve.high is not None
    assert fve.low < fve.value < fve.high
    assert first.controls["random_sae"]["l0"].value == pytest.approx(first.figures["l0"].value, abs=0.5)
    assert sum(first.firing_histogram.values()) == 24
    tokens = sum(band.fve.tokens for band in first.frequencies)
    assert tokens == first.figures["fve_no_sinks"].tokens
    page = (tmp_path / "deep" / "e.md").read_text()
    assert f"# {SAE}" in page
    assert all(f"| `{name}` | " in page for name in DEFINITIONS)


def test_clearml_gets_figures_and_report(
    fit: Callable[..., Any], lightsae: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_of(fit)
    fake = FakeClearML()
    monkeypatch.setitem(sys.modules, "clearml", fake)
    sizes = ("--tokens", "128", "--ce_tokens", "0", "--controls", "[]")
    ended = lightsae("evaluate", "--sae", SAE, *sizes, "--out", "e.json", "--clearml", "demo", *TEXT)
    assert ended.code == 0, ended.err
    assert "offline-t1.zip" in ended.out
    (task,) = fake.tasks
    figures = read_report(tmp_path / "e.json")[0].figures
    assert task.values == {name: figure.value for name, figure in figures.items()}
    assert task.artefacts == {"evaluation": "e.json", "page": "e.md"}
    assert task.connected["settings"]["tokens"] == 128
    monkeypatch.setitem(sys.modules, "clearml", None)
    ended = lightsae("evaluate", "--sae", "missing", "--clearml", "demo")
    assert (ended.code, ended.new) == (2, [])
    assert "pip install 'lightsae[clearml]'" in ended.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--out", "e.txt"), "out is 'e.txt'; name a file that ends in .json."),
        (("--tokens", "0"), "tokens is 0; write 1 or more."),
        (("--ce_tokens", "-1"), "ce_tokens is -1; write how many, 0 for none."),
        (("--sae", "[]"), "sae is []; name at least one."),
        (("--sae", "missing"), "sae is 'missing', which does not exist."),
        (("--controls", "[luck]"), "controls"),
    ],
)
def test_a_mistake_is_one_line(lightsae: Any, options: tuple[str, ...], said: str) -> None:
    ended = lightsae("evaluate", "--sae", "missing", *options)
    assert ended.code == 2
    assert said in ended.err
    assert ended.new == []


def test_without_a_head_nothing_is_spliced(fit: Callable[..., Any], lightsae: Any, tmp_path: Path) -> None:
    run_of(fit)
    ended = lightsae("evaluate", "--sae", SAE, "--tokens", "320", "--ce_tokens", "0", "--out", "e.json", *TEXT)
    assert ended.code == 0, ended.err
    assert not any(name.startswith("ce_") for name in read_report(tmp_path / "e.json")[0].figures)
