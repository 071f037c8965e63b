"""Whatever logs, a run has one folder, goes on in it, and names at its end what stands there."""

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from helpers.fake_clearml import FakeClearML
from helpers.remote_logger import RemoteLogger

Run = Callable[..., Any]
CSV = "{class_path: CSVLogger, init_args: {save_dir: logs, name: mine}}"
TENSORBOARD = "{class_path: TensorBoardLogger, init_args: {save_dir: .}}"
IN_PART = "{class_path: TensorBoardLogger, init_args: {save_dir: logs, name: mine, sub_dir: here}}"
REMOTE = "{class_path: helpers.remote_logger.RemoteLogger, init_args: {save_dir: elsewhere}}"
LOGGERS = {
    "csv": (CSV, "logs/mine/version_0"),
    "none": ("false", "lightning_logs/version_0"),
    "remote": (REMOTE, "lightning_logs/version_0"),
    "remote, then csv": (f"[{REMOTE}, {CSV}]", "logs/mine/version_0"),
    "csv, then TensorBoard": (f"[{CSV}, {TENSORBOARD}]", "logs/mine/version_0"),
    "TensorBoard of one's own": (IN_PART, "logs/mine/version_0/here"),
}
SETTINGS = (
    "--data.activations {inputs}/rows.npy --data.batch_tokens 64 --data.buffer_tokens 256 --data.val_tokens 128 "
    "--model.sae TopK --model.sae.d_sae 24 --model.sae.k 4 --trainer.enable_progress_bar false "
    "--allow_classes helpers.remote_logger"
)


def named_paths(out: str, run: str) -> list[str]:
    """Return the paths in the run's folder that are named in the closing lines."""
    words = re.findall(rf"{re.escape(run)}/[\w./]*", out)
    return [word.rstrip("./") for word in words]


@pytest.mark.parametrize("case", LOGGERS)
def test_a_run_and_its_resumption_have_one_folder(case: str, lightsae: Run, inputs: Path, tmp_path: Path) -> None:
    logger, run = LOGGERS[case]
    (tmp_path / "c.yaml").write_text(f"trainer: {{logger: {logger}}}\n")
    options = SETTINGS.format(inputs=inputs).split()
    ended = lightsae("fit", "--config", "c.yaml", *options, "--trainer.max_steps", "3")
    assert ended.code == 0, ended.err
    again = lightsae(
        "fit", "--config", f"{run}/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "5", *options[-2:]
    )
    assert again.code == 0, again.err
    for out in (ended.out, again.out):
        assert f"{run}/sae" in out
        for path in named_paths(out, run):
            assert (tmp_path / path).exists(), f"{path} is named, and not there"
        assert ("tensorboard --logdir" in out) == ("TensorBoard" in case)
    folders = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("config*.yaml"))
    assert folders == [run, run], "config.yaml, and config.resume-1.yaml beside it"
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.ckpt")] == [f"{run}/checkpoints/last.ckpt"]
    assert len(list(tmp_path.rglob("version_*"))) == (2 if "then TensorBoard" in case else 1)
    provenance = json.loads((tmp_path / run / "sae" / "sae.json").read_text())["provenance"]
    assert provenance["step"] == 5
    assert provenance["config"] == (tmp_path / run / "config.yaml").read_text()
    assert torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    saved = [yaml.safe_load((tmp_path / run / name).read_text()) for name in ("config.yaml", "config.resume-1.yaml")]
    assert saved[0]["trainer"]["logger"] == saved[1]["trainer"]["logger"], "what is saved is what was set"
    assert saved[0]["trainer"]["default_root_dir"] is None
    if "remote" in case:
        assert RemoteLogger.told["model.sae.init_args.d_sae"] == 24
        assert RemoteLogger.told["trainer.max_steps"] == 5, "what goes on is a run of its own there"
    if "csv" in case:
        # Lightning's logger would have begun a new file in the place of the first.
        for name, last in (("metrics.until-resume-1.csv", 2), ("metrics.csv", 4)):
            rows = list(csv.DictReader((tmp_path / run / name).read_text().splitlines()))
            assert max(int(row["step"]) for row in rows) == last


def test_a_validation_without_a_logger_has_a_folder_of_its_own(lightsae: Run, inputs: Path, tmp_path: Path) -> None:
    options = [*SETTINGS.format(inputs=inputs).split(), "--trainer.logger", "false"]
    assert lightsae("fit", *options, "--trainer.max_steps", "3").code == 0
    ended = lightsae("validate", "--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", "last")
    assert ended.code == 0, ended.err
    assert "lightning_logs/version_1/validation.json" in ended.out
    assert (tmp_path / "lightning_logs/version_1/validation.json").is_file()


def test_a_run_without_a_logger_that_fails_leaves_nothing(lightsae: Run, inputs: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "nan.npy", np.full((2000, 12), np.nan, np.float32))
    options = [*SETTINGS.format(inputs=inputs).split(), "--trainer.logger", "false", "--trainer.max_steps", "3"]
    ended = lightsae("fit", *options, "--data.activations", "nan.npy")
    assert (ended.code, ended.new) == (2, []), ended.err


@pytest.mark.parametrize(
    ("logger", "said"),
    [
        ("{class_path: WandbLogger}", "trainer.logger: WandbLogger needs the package wandb; install it: pip install"),
        ("[{class_path: CSVLogger, init_args: {save_dir: logs}}, {class_path: ClearMLLogger}]", "'lightsae[clearml]'"),
    ],
)
def test_a_logger_without_its_package_is_one_line(
    logger: str, said: str, lightsae: Run, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("wandb", "clearml"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "c.yaml").write_text(f"trainer: {{logger: {logger}}}\n")
    ended = lightsae("fit", "--config", "c.yaml", *SETTINGS.format(inputs=inputs).split(), "--trainer.max_steps", "3")
    assert (ended.code, ended.new) == (2, [])
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_what_a_logger_of_a_list_refuses_is_one_line(lightsae: Run, inputs: Path, tmp_path: Path) -> None:
    refusing = "{class_path: helpers.remote_logger.RefusingLogger}"
    (tmp_path / "c.yaml").write_text(f"trainer: {{logger: [{CSV}, {refusing}]}}\n")
    ended = lightsae("fit", "--config", "c.yaml", *SETTINGS.format(inputs=inputs).split(), "--trainer.max_steps", "3")
    assert (ended.code, ended.new) == (2, [])
    assert "the server is closed" in ended.err
    assert ended.err.count("\n") == 1


def test_clearml_gets_the_run_and_then_its_validation(
    lightsae: Run, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeClearML()
    monkeypatch.setitem(sys.modules, "clearml", fake)
    (tmp_path / "c.yaml").write_text("trainer: {logger: {class_path: ClearMLLogger}}\n")
    options = [*SETTINGS.format(inputs=inputs).split(), "--trainer.log_every_n_steps", "1"]
    assert lightsae("fit", "--config", "c.yaml", *options, "--trainer.max_steps", "3").code == 0
    config = "lightning_logs/version_0/config.yaml"
    assert lightsae("validate", "--config", config, "--ckpt_path", "last").code == 0
    fit, validate = fake.tasks
    assert fit.closed
    assert validate.closed
    assert {(title, series) for title, series, *_ in fit.scalars} >= {("loss", "train"), ("fve", "val")}
    assert {step for _, series, _, step in fit.scalars if series == "train"} == {0, 1, 2}
    assert fit.connected["settings"]["model.sae.init_args.d_sae"] == 24
    assert fit.connected["config.yaml"] == (tmp_path / config).read_text()
    assert set(fit.artefacts) >= {"config.yaml", "sae", "throughput.json"}
    assert "validation.json" in validate.artefacts
