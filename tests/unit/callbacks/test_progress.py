"""The progress bar: tokens and five figures, lines in time where no terminal is, no part in the training."""

import io
import itertools
import re
import sys
import threading

import pytest
import torch
from lightning import Callback

from lightsae.callbacks import progress
from lightsae.callbacks.progress import TrainingProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Figures(Callback):
    """Logs what other callbacks log in a real run."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name in pl_module.saes:
            for tag, value in {"train/fve": 0.8612345, "train/l0": 19.5, "train/dead_fraction": 0.034}.items():
                pl_module.log(pl_module.tag(name, tag), value)


class Clock:
    """Stands still unless somebody moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Slow(Callback):
    """Makes each training step, and each batch of a validation, take this long."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def on_train_batch_start(self, *_):
        self.clock.now += self.seconds

    def on_validation_batch_start(self, *_):
        self.clock.now += self.seconds


def watched(small_run, monkeypatch, stream, *more, bar=None, **options):
    monkeypatch.setattr(sys, "stderr", stream)
    run = small_run(*more, Figures(), bar or TrainingProgressBar(), enable_progress_bar=True, **options)
    return run, stream.getvalue()


def test_outside_a_terminal_a_line_at_each_tenth(small_run, monkeypatch):
    _, shown = watched(small_run, monkeypatch, io.StringIO(), steps=100, validate_every=50)
    lines = [line for line in shown.splitlines() if " tokens, " in line]
    assert "\r" not in shown
    assert [re.search(r", (\S+) of 3.20k tokens", line)[1] for line in lines[:3]] == ["320", "640", "960"]
    assert len(lines) == 10
    assert "step 100 of 100, 3.20k of 3.20k tokens" in lines[-1]
    words = (
        r"\d\d:\d\d:\d\d  step 10 of 100, 320 of 3.20k tokens, [\d.]+k? tokens/s, [\d:]+ left, loss [\d.e+]+, "
        r"FVE 0.8612, L0 19.5, dead 3.4%"
    )
    assert re.fullmatch(words, lines[0]), lines[0]


def test_outside_a_terminal_a_line_at_least_every_thirty_seconds(small_run, monkeypatch):
    clock, reads = Clock(), []
    original = TrainingProgressBar.get_metrics
    monkeypatch.setattr(TrainingProgressBar, "get_metrics", lambda *a: reads.append(clock.now) or original(*a))
    bar = TrainingProgressBar(clock=clock)
    _, shown = watched(small_run, monkeypatch, io.StringIO(), Slow(clock, 3.0), bar=bar, steps=200, validate_every=100)
    lines = shown.splitlines()
    steps = [int(found[1]) for line in lines if (found := re.search(r"step (\d+) of 200", line))]
    # A step takes three seconds: a line after seven of them, and one at each tenth of the run.
    assert steps[:6] == [7, 14, 20, 27, 34, 40]
    assert max(3 * (b - a) for a, b in itertools.pairwise(steps)) <= 30
    # Figures are read from the device for a line, and for no step without one.
    assert len(reads) == len(steps)
    # 32 tokens in three seconds, and no second of validation among them.
    assert all("10.7 tokens/s" in line for line in lines if "step" in line)
    assert "step 100 of 200, 3.20k of 6.40k tokens, 10.7 tokens/s, 05:00 left" in shown
    assert "step 120 of 200, 3.84k of 6.40k tokens, 10.7 tokens/s, 04:00 left" in shown


def test_outside_a_terminal_validation_tells_how_far_it_is(small_run, monkeypatch):
    clock = Clock()
    _, shown = watched(
        small_run, monkeypatch, io.StringIO(), Slow(clock, 21.0), bar=TrainingProgressBar(clock=clock), steps=10,
        validate_every=10,
    )  # fmt: skip
    assert [line.split("  ")[1] for line in shown.splitlines() if "validation" in line] == [
        f"validation, batch {done} of 3, {left} left" for done, left in ((1, "00:42"), (2, "00:21"), (3, "00:00"))
    ]


def test_outside_a_terminal_a_line_also_while_a_step_hangs(small_run, monkeypatch):
    stream = io.StringIO()
    written = threading.Event()

    class Lines(TrainingProgressBar):
        def _write_line(self):
            super()._write_line()
            written.set()

    class Hang(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                written.clear()
                assert written.wait(60)

    watched(small_run, monkeypatch, stream, Hang(), bar=Lines(line_seconds=0.05), steps=2)
    assert "step 1 of 2, 32.0 of 64.0 tokens" in stream.getvalue()
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_outside_a_terminal_a_line_now_and_then_when_the_end_is_unknown(small_run, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(TrainingProgressBar, "_total_tokens", lambda self: None)
    bar = TrainingProgressBar(clock=clock)
    _, shown = watched(small_run, monkeypatch, io.StringIO(), Slow(clock, 25.0), bar=bar, steps=3)
    assert "step 1 of 3, 32.0 tokens, 1.28 tokens/s, loss" in shown
    assert " left" not in shown


def test_in_a_terminal_one_bar_in_tokens(small_run, monkeypatch):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "200")
    _, shown = watched(small_run, monkeypatch, Terminal(), steps=20, validate_every=10)
    last = [part for part in re.split(r"[\r\n]", shown) if part.startswith("tokens")][-1]
    assert "100%" in last
    assert "640/640" in last
    for part in ("tokens/s=", "loss=", "FVE=0.8612", "L0=19.5", "dead=3.4%"):
        assert part in last
    assert "v_num" not in shown
    assert "validation" in shown


def test_in_a_terminal_no_more_redraws_than_its_refresh(small_run, monkeypatch):
    calls = []
    original = TrainingProgressBar.get_metrics
    monkeypatch.setattr(TrainingProgressBar, "get_metrics", lambda *a: calls.append(1) or original(*a))
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 1000.0)
    watched(small_run, monkeypatch, Terminal(), steps=20)
    assert len(calls) == 1  # at the end


def test_of_several_dictionaries_the_first_is_shown_by_name(small_run, monkeypatch):
    _, shown = watched(small_run, monkeypatch, io.StringIO(), steps=10, names=("wide", "narrow"))
    assert "of wide" in shown
    assert "FVE 0.8612" in shown


def test_a_resumed_run_goes_on_where_it_was(small_run, monkeypatch):
    first = small_run(steps=10)
    first.trainer.save_checkpoint(first.folder / "at10.ckpt")
    _, shown = watched(
        small_run, monkeypatch, io.StringIO(), steps=20, batches=10, ckpt_path=first.folder / "at10.ckpt"
    )
    lines = [line for line in shown.splitlines() if " tokens, " in line]
    assert "step 12 of 20, 384 of 640 tokens" in lines[0]


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_watching_changes_no_weight(small_run, monkeypatch, stream):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    run, _ = watched(small_run, monkeypatch, stream(), steps=6)
    without = small_run(steps=6, folder="other")
    assert torch.equal(run.module.saes["sae"].W_enc, without.module.saes["sae"].W_enc)
