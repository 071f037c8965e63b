"""The progress bar: tokens and five figures, few lines where nobody watches, no part in the training."""

import io
import re
import sys

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


def watched(small_run, monkeypatch, stream, **options):
    monkeypatch.setattr(sys, "stderr", stream)
    return small_run(Figures(), TrainingProgressBar(), enable_progress_bar=True, **options), stream.getvalue()


def test_outside_a_terminal_a_line_at_each_tenth(small_run, monkeypatch):
    _, shown = watched(small_run, monkeypatch, io.StringIO(), steps=100, validate_every=50)
    lines = [line for line in shown.splitlines() if " tokens, " in line]
    assert "\r" not in shown
    assert [line.split(" of ")[0] for line in lines[:3]] == ["320", "640", "960"]
    assert len(lines) == 10
    assert lines[-1].startswith("3.20k of 3.20k")
    words = r"320 of 3.20k tokens, tokens/s [\d.]+k?, loss [\d.e+]+, FVE 0.8612, L0 19.5, dead 3.4%"
    assert re.fullmatch(words, lines[0]), lines[0]


def test_outside_a_terminal_a_line_now_and_then_when_the_end_is_unknown(small_run, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(TrainingProgressBar, "_total_tokens", lambda self: None)
    _, shown = watched(small_run, monkeypatch, io.StringIO(), steps=3)
    assert "32.0 tokens, tokens/s" in shown
    assert " of " not in shown


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
    assert lines[0].startswith("384 of 640 tokens")


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_watching_changes_no_weight(small_run, monkeypatch, stream):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    run, _ = watched(small_run, monkeypatch, stream(), steps=6)
    without = small_run(steps=6, folder="other")
    assert torch.equal(run.module.saes["sae"].W_enc, without.module.saes["sae"].W_enc)
