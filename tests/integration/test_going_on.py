"""A run that is resumed with other settings than it was begun with: what holds then, and what is said."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import own_process
from lightsae.callbacks import TrainingCurves

Run = Callable[..., Any]
RUN = Path("lightning_logs", "version_0")
SETTINGS = (
    "--data.activations rows.npy --data.batch_tokens 64 --data.buffer_tokens 256 --data.val_tokens 128 "
    "--model.sae TopK --model.sae.d_sae 24 --model.sae.k 4 "
    "--trainer.enable_progress_bar false --trainer.log_every_n_steps 1 "
    "--checkpoint.every_n_train_steps 5"
).split()
AGAIN = ["--config", str(RUN / "config.yaml"), "--ckpt_path", "last"]


@pytest.fixture
def begun(lightsae: Run, tmp_path: Path) -> Path:
    """A folder in which a run of 6 steps has ended."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32))
    ended = lightsae("fit", *SETTINGS, "--trainer.max_steps", "6")
    assert ended.code == 0, ended.err
    return tmp_path / RUN


def rates(run: Path) -> dict[int, float]:
    events = EventAccumulator(str(run))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/lr")}


def test_a_longer_run_rises_and_falls_over_its_new_length(
    begun: Path, lightsae: Run, caplog: pytest.LogCaptureFixture
) -> None:
    ended = lightsae("fit", *AGAIN, "--trainer.max_steps", "12")
    assert ended.code == 0, ended.err
    assert "The run has 12 steps now and had 6" in caplog.text
    # A rise over 2 steps and a fall over the last 2, and the peak of the first run.
    peak = rates(begun)[2]
    assert {step: rate / peak for step, rate in rates(begun).items() if step >= 6} == pytest.approx(
        {6: 1.0, 7: 1.0, 8: 1.0, 9: 1.0, 10: 1.0, 11: 0.5}
    )


@pytest.mark.parametrize("steps", [6, 4])
def test_a_run_that_has_ended_says_that_nothing_is_left(
    begun: Path, lightsae: Run, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = (begun / "sae" / "sae.safetensors").read_bytes()
    ended = lightsae("fit", *AGAIN, "--trainer.max_steps", str(steps))
    assert ended.code == 0, ended.err
    assert f"Nothing is left to train: the checkpoint is of step 6, and the run of {steps} steps." in caplog.text
    assert (begun / "sae" / "sae.safetensors").read_bytes() == before


def test_a_rate_that_is_asked_for_holds_and_says_what_it_costs(
    begun: Path, lightsae: Run, caplog: pytest.LogCaptureFixture
) -> None:
    ended = lightsae("fit", *AGAIN, "--trainer.max_steps", "12", "--model.lr", "0.003")
    assert ended.code == 0, ended.err
    assert "The learning rate of sae is 0.003 now and was 0.01" in caplog.text
    assert max(rate for step, rate in rates(begun).items() if step >= 6) == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--data.batch_tokens 32", "data.batch_tokens differs from the checkpoint's: batch_tokens was 64 and is 32"),
        ("--data.buffer_tokens 512", "data.buffer_tokens (or data.context_size"),
        ("--seed_everything 1", "data.seed (or seed_everything) differs from the checkpoint's"),
        ("--data.seed 1", "data.seed (or seed_everything) differs from the checkpoint's"),
        ("--model.sae.d_sae 32", "d_sae is 24 in the checkpoint and 32 in the configuration"),
        ("--data.activations other.npy", "read is ['rows'] in the checkpoint and ['other'] in the configuration"),
    ],
)
def test_what_says_what_a_batch_or_an_sae_is_cannot_change(
    begun: Path, lightsae: Run, options: str, words: str
) -> None:
    shutil.copy("rows.npy", "other.npy")
    ended = lightsae("fit", *AGAIN, "--trainer.max_steps", "12", *options.split())
    assert ended.code == 2, ended.err
    assert ended.err.count("\n") == 1
    assert words in ended.err
    assert ended.new == [], "refused before anything was written"


def change_moments(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(2)


def change_place(checkpoint: dict[str, Any]) -> None:
    checkpoint["ActivationDataModule"]["served_batches"] = -5


def put_nan(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"]["saes.sae.W_enc"][0, 0] = float("nan")


@pytest.mark.parametrize("change", [change_moments, change_place, put_nan, lambda checkpoint: checkpoint.pop("loops")])
def test_a_checkpoint_that_cannot_be_gone_on_from(begun: Path, lightsae: Run, change: Callable[..., Any]) -> None:
    path = begun / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    ended = lightsae("fit", *AGAIN, "--trainer.max_steps", "12")
    assert (ended.code, ended.new) == (2, []), ended.err
    assert ended.err.count("\n") == 1
    assert "--ckpt_path: " in ended.err


# -- one folder, one process -----------------------------------------------------------------------------------------

SLOW = [*AGAIN, "--trainer.max_steps", "1000000"]


def started(folder: Path, *args: str) -> BaseProcess:
    """Start `lightsae fit`, and wait until it trains. What it says on stderr goes to `said`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    before = (folder / RUN / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    process = own_process.start(["fit", *args], folder, environment, folder / ".out", folder / "said")
    while (folder / RUN / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before:
        assert process.is_alive(), (folder / "said").read_text()
        time.sleep(0.05)
    return process


def test_a_second_process_in_a_run_folder_is_refused_by_name(begun: Path, lightsae: Run, tmp_path: Path) -> None:
    first = started(tmp_path, *SLOW)
    try:
        second = lightsae("fit", *AGAIN)
        assert second.code == 2
        assert "Another process is running in lightning_logs/version_0" in second.err
        assert second.err.count("\n") == 1
        assert not (begun / "config.resume-2.yaml").exists()
        assert first.is_alive(), "the first one goes on"
    finally:
        first.kill()
        first.join()
    # A killed process holds nothing.
    assert (begun / ".lock").exists()
    step = torch.load(begun / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    ended = lightsae("fit", *AGAIN, "--trainer.max_steps", str(step + 2))
    assert ended.code == 0, ended.err
    assert not (begun / ".lock").exists()


def test_a_run_whose_folder_is_removed_ends_in_one_line_and_puts_nothing_back(begun: Path, tmp_path: Path) -> None:
    process = started(tmp_path, *SLOW, "--checkpoint.every_n_train_steps", "300")
    begun.rename(tmp_path / "elsewhere")
    process.join(120)
    said = (tmp_path / "said").read_text()
    assert process.exitcode == 2, said
    last = said.splitlines()[-1]
    assert last.startswith("lightsae: error: lightning_logs/version_0, the run's folder, was removed during the run.")
    assert last.endswith("no checkpoint is kept.")
    assert "Traceback" not in said
    assert not begun.exists()


# -- signals after the last step -------------------------------------------------------------------------------------


def interrupt(self: Callback, trainer: Trainer, *args: Any) -> None:
    """Ctrl-C, in a hook; in this thread, or the kernel may hand it to another one, and it comes too late."""
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("hook", ["on_validation_epoch_start", "on_train_end", "on_fit_end", "on_train_epoch_end"])
def test_ctrl_c_after_the_last_step_loses_nothing(
    hook: str, lightsae: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32))
    monkeypatch.setattr(TrainingCurves, hook, interrupt)
    # A suite that runs in the background may have been told to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ended = lightsae("fit", *SETTINGS, "--trainer.max_steps", "6")
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it for good after the first
    assert ended.code == 130, ended.err
    assert ended.err.splitlines()[-1] == f"lightsae: stopped. Go on: lightsae fit {' '.join(AGAIN)}"
    assert torch.load(tmp_path / RUN / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    again = lightsae("fit", *AGAIN)
    assert again.code == 0, again.err
    assert "Nothing is left to train" in caplog.text
