"""What is printed at the end of a run: a row a figure for one dictionary, a row a dictionary for several."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer
from rich.console import Console

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.cli.settings.trusted import to_type_again
from lightsae.cli.settings.typed import options_of
from lightsae.cli.training.report import _where_next, report
from lightsae.sae import TopK, Widths
from lightsae.training.entries import Entry
from lightsae.training.module import SAEModule

FIGURES = {"fve": 0.91234, "fve_no_sinks": -0.8, "l0": 16.04, "dead_fraction": 0.0123, "tokens": 2048.0}
TEXT = {"ce_recovered": 0.97, "kl": 0.1}


def topk(widths: Widths) -> TopK:
    return TopK(widths, d_sae=8, k=2)


class Ended(Trainer):
    """A trainer after a run of these figures by dictionary; of a single one, whose name is empty."""

    callback_metrics = lightning_module = is_global_zero = ckpt_path = None  # type: ignore[assignment]
    loggers = default_root_dir = strategy = fast_dev_run = None  # type: ignore[assignment]

    def __init__(self, folder: Path | None, figures: dict[str, dict[str, float]]) -> None:
        module = SAEModule(topk) if "" in figures else SAEModule(saes={name: Entry(topk) for name in figures})
        module.saes.update({name or "sae": topk(Widths.of(4)) for name in figures})
        self.lightning_module = module
        self.loggers, self.fast_dev_run = [], False
        self.strategy = SimpleNamespace(broadcast=lambda value: value)
        self.default_root_dir = "nowhere" if folder is None else str(folder)
        self.is_global_zero = True
        self.callback_metrics = {
            module.tag(name or "sae", f"val/{key}"): value
            for name, own in figures.items()
            for key, value in own.items()
        } | {"train/loss": 1.0}


class Data(ActivationDataModule):
    def __init__(self) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"model": "toy"}


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    def lines(figures: dict[str, dict[str, float]], folder: Path | None = None, command: str = "fit") -> list[str]:
        report(Ended(folder, figures), Data(), command)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return lines


def test_one_dictionary_has_a_row_a_figure(printed: Any) -> None:
    lines = printed({"": FIGURES | TEXT})
    assert [line.split()[:2] for line in lines[1:]] == [
        ["val/fve", "0.9123"], ["val/fve_no_sinks", "-0.8"], ["val/l0", "16.04"], ["val/dead_fraction", "0.0123"],
        ["val/ce_recovered", "0.97"], ["val/kl", "0.1"], ["val/tokens", "2,048"],
    ]  # fmt: skip
    assert lines[1].endswith("fraction of variance explained")


def test_several_have_a_row_each_in_the_order_of_the_run(printed: Any) -> None:
    lines = printed({"oval": FIGURES | TEXT, "a": FIGURES | {"l0_in_training": 16.0, "l0": 1234.56}})
    assert lines[1].split() == ["validation", "fve", "no", "sinks", "l0", "training", "dead", "recovered", "kl"]
    # A figure that a dictionary does not have leaves a gap.
    assert lines[2].split() == ["oval", "0.9123", "-0.8000", "16.0", "1.2%", "0.9700", "0.1000"]
    assert lines[3].split() == ["a", "0.9123", "-0.8000", "1234.6", "16.0", "1.2%"]
    assert lines[4:] == ["on 2,048 held-out tokens"]


def test_without_a_language_model_there_are_no_columns_of_it(printed: Any) -> None:
    lines = printed({"a": FIGURES, "b": FIGURES})
    assert lines[1].split() == ["validation", "fve", "no", "sinks", "l0", "dead"]


def test_long_names_stay_within_a_hundred_columns(printed: Any) -> None:
    name = "matryoshka_of_the_instruction_tuned_model_d_sae16384_k64"
    lines = printed({name: FIGURES | TEXT | {"l0_in_training": 16.0}, "b": FIGURES})
    assert max(map(len, lines)) <= 100
    assert name in "".join(line.split()[0] for line in lines[2:4])


def test_without_validation_no_table_is_printed(printed: Any) -> None:
    assert printed({"a": {}, "b": {}}) == []
    assert printed({"": {}}) == []


def test_where_next_names_what_a_sweep_left(printed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "version_0"
    run.mkdir(parents=True)
    for name in ("sweep.json", "sweep.png"):
        (run / name).touch()
    (run / "sae").mkdir()
    lines = printed({"a": FIGURES, "b": FIGURES}, run)
    assert "sweep         runs/version_0/sweep.json, sweep.png" in lines
    assert 'SAEs          runs/version_0/sae/NAME/   lightsae.load_sae("runs/version_0/sae/NAME")' in lines
    lines = printed({"": FIGURES}, run)
    assert 'SAE           runs/version_0/sae/   lightsae.load_sae("runs/version_0/sae")' in lines
    assert not any("sweep" in line for line in lines)
    # What is not there is not named.
    assert not any("config.yaml" in line or "training_curves" in line or "tensorboard" in line for line in lines)


def test_what_has_to_be_typed_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = to_type_again(
        dict(options_of(["--config", "a.yaml", "--allow_classes=mine,our own", "--data.trust_remote_code", "true"]))
    )
    run = tmp_path / "runs" / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.ckpt"):
        (run / name).touch()
    _where_next(Console(width=200), run, options, several=False, tensorboard=False)
    more = "--ckpt_path last --allow_classes 'mine,our own' --data.trust_remote_code true"
    lines = capsys.readouterr().out.splitlines()
    assert f"go on         lightsae fit --config runs/version_0/config.yaml {more}" in lines
    assert f"measure       lightsae validate --config runs/version_0/config.yaml {more}" in lines
    assert to_type_again({"config": "a.yaml", "trainer.max_steps": "3"}) == ""


def test_validate_writes_its_figures(printed: Any, tmp_path: Path) -> None:
    lines = printed({"a": FIGURES, "b": FIGURES}, tmp_path, "validate")
    told = json.loads((tmp_path / "validation.json").read_text())
    assert told["figures"]["b/val/fve"] == 0.91234
    assert "train/loss" not in told["figures"]
    assert told["data"] == {"model": "toy"}
    assert lines[-1].endswith("validation.json")


def test_nothing_is_written_in_fit(printed: Any, tmp_path: Path) -> None:
    printed({"": FIGURES}, tmp_path)
    assert not list(tmp_path.iterdir())
