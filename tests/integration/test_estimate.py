"""`lightsae estimate`: the settings of fit, figures of hours, memory and cost, and nothing left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
ELSEWHERE = ["--flops", "4e14", "--bandwidth", "3e12"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightsae.estimate.miniature._BUDGET", 0.0)
    monkeypatch.setattr("lightsae.estimate.miniature._LEAST", 1)
    monkeypatch.setattr("lightsae.estimate.machine._SIDE", 128)


@pytest.mark.usefixtures("short")
def test_this_machine_is_measured(lightsae: Run, complete: Run, tmp_path: Path) -> None:
    ended = lightsae("estimate", *complete("trainer.max"), "--tokens", "64_000", "--out", "figures.json")
    assert ended.code == 0, ended.err
    assert ended.new == ["figures.json"]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["tokens"], figures["steps"]) == (64_000, 1000)
    assert all(figures["seconds"][part] > 0 for part in ("language_model", "sae_steps", "validation", "saving"))
    assert figures["total_seconds"] == pytest.approx(sum(figures["seconds"].values()))
    assert figures["cost"] is None
    assert f"{figures['tokens_per_second']:,.0f}" in ended.out


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("data", ["file", "synthetic"])
def test_without_a_language_model(lightsae: Run, complete: Run, inputs: Path, tmp_path: Path, data: str) -> None:
    own = ["--data.activations", str(inputs / "rows.npy")] if data == "file" else ["--data.dataset", "synthetic"]
    ended = lightsae("estimate", *complete("data.model", "data.site", "data.dataset"), *own, "--out", "figures.json")
    assert ended.code == 0, ended.err
    seconds = json.loads((tmp_path / "figures.json").read_text())["seconds"]
    assert seconds["data"] > 0
    assert "language_model" not in seconds


def test_a_mixture_is_text_too(lightsae: Run, complete: Run, tmp_path: Path) -> None:
    (tmp_path / "mixed.yaml").write_text("data: {datasets: [{name: builtin, weight: 1}]}")
    ended = lightsae("estimate", "--config", "mixed.yaml", *complete("data.dataset"), *ELSEWHERE)
    assert ended.code == 0, ended.err


def test_what_roles_leave_out_is_said(lightsae: Run, complete: Run) -> None:
    assert "data.roles" not in lightsae("estimate", *complete(), *ELSEWHERE).out
    ended = lightsae("estimate", *complete(), "--data.roles", "[assistant]", *ELSEWHERE)
    assert ended.code == 0, ended.err
    assert "its part takes 1 / s as long" in ended.out


def test_another_machine_is_worked_out(lightsae: Run, complete: Run, tmp_path: Path) -> None:
    settings = complete("trainer.max", "trainer.accelerator", "model")
    settings += ["--model.sae", "BatchTopK", "--model.sae.d_sae", "1048576", "--model.sae.k", "64"]
    settings += ["--trainer.accelerator", "gpu", "--trainer.devices", "8", "--trainer.num_nodes", "2"]
    ended = lightsae(
        "estimate", *settings, "--tokens", "1_000_000_000", *ELSEWHERE, "--price_per_hour", "3", "--out", "figures.json"
    )
    assert ended.code == 0, ended.err
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["devices"] == 16
    assert figures["cost"] == pytest.approx(16 * 3 * figures["total_seconds"] / 3600)
    assert ended.new == ["figures.json"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--flops", "1e12"], "bandwidth is missing"),
        (["--flops", "-1", "--bandwidth", "1"], "flops is -1.0; it must be above 0"),
        (["--tokens", "0"], "tokens is 0; it must be above 0"),
        (["--trainer.accelerator", "gpu"], "not at hand to be measured"),
        (["--data.site", "resid_post.9"], "data.site is 'resid_post.9'"),
        (["--price_per_hour", "0"], "price_per_hour is 0.0"),
        (["--trainer.strategy", "model_parallel"], "estimate one of that share"),
        (["--trainer.max_steps", "-1"], "The length of the run is missing"),
        (["--model.coefficients.kl", "1"], "model.coefficients.kl: what that term takes is not in an estimate"),
    ],
)
def test_a_mistake_is_one_line(lightsae: Run, complete: Run, options: list[str], said: str) -> None:
    ended = lightsae("estimate", *complete(), *options)
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert ended.new == []
