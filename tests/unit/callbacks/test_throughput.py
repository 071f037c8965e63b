"""Throughput: rates and shares follow from a clock that leaves validation and saving out."""

import json
import time

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightsae.callbacks.export import ExportSAE
from lightsae.callbacks.throughput import Throughput, memory, rates
from lightsae.errors import ConfigError
from lightsae.training.checkpoint_io import AtomicCheckpointIO


def report(run):
    return json.loads((run.folder / "throughput.json").read_text())


def test_rates_divide_by_the_time():
    spent = {"tokens": 3000.0, "total": 2.0, "language_model": 1.0, "sae_step": 0.5, "text": 0.2}
    assert rates(spent) == pytest.approx(
        {
            "tokens_per_second": 1500.0,
            "share_language_model": 0.5,
            "share_sae_step": 0.25,
            "share_text": 0.1,
            "share_waiting": 0.6,
            "share_other": 0.15,
        }
    )


def test_what_runs_beside_the_step_is_no_waiting():
    spent = {"tokens": 3000.0, "total": 2.0, "language_model": 1.6, "sae_step": 1.5, "text": 0.2, "waiting": 0.3}
    shares = rates(spent)
    assert shares["share_language_model"] == 0.8
    assert shares["share_waiting"] == 0.15
    assert shares["share_other"] == pytest.approx(0.1)


def test_the_rest_is_never_negative():
    assert rates({"tokens": 1.0, "total": 1.0, "language_model": 0.8, "sae_step": 0.1, "text": 0.3})["share_other"] == 0


def test_memory_is_in_mib_and_names_a_gpu_only_where_there_is_one():
    figures = memory(torch.device("cpu"))
    assert figures.keys() == {"memory_mb"}
    assert 50 < figures["memory_mb"] < 100_000


def test_it_logs_every_n_steps_and_never_repeats(small_run):
    run = small_run(Throughput(every_n_steps=4), steps=9)
    events = EventAccumulator(str(run.folder))
    events.Reload()
    logged = {tag for tag in events.Tags()["scalars"] if tag.startswith("perf/")}
    parts = ("language_model", "sae_step", "text", "waiting", "other")
    assert logged == {"perf/tokens_per_second", "perf/memory_mb", *(f"perf/share_{part}" for part in parts)}
    assert [event.step for event in events.Scalars("perf/tokens_per_second")] == [3, 7]


def test_the_report_holds_the_totals_and_the_machine(small_run):
    run = small_run(Throughput(), steps=5)
    totals = report(run)
    assert totals["tokens"] == 5 * run.data.batch_tokens
    assert totals["tokens_per_second"] == pytest.approx(totals["tokens"] / totals["seconds"]["total"], rel=0.05)
    assert 0 < totals["share_sae_step"] <= 1
    assert totals["machine"]["device"].startswith("cpu")


class Sleeper(Callback):
    """Makes one phase of a run slow."""

    def __init__(self, hook: str, seconds: float) -> None:
        setattr(self, hook, lambda *_: time.sleep(seconds))


def test_validation_is_left_out(small_run):
    run = small_run(Throughput(), Sleeper("on_validation_batch_end", 0.2), steps=4, validate_every=2)
    assert report(run)["seconds"]["total"] < 1.0  # the six validation batches alone take 1.2 seconds


def test_the_time_of_training_counts(small_run):
    run = small_run(Throughput(), Sleeper("on_train_batch_start", 0.1), steps=4)
    assert report(run)["seconds"]["total"] > 0.4
    assert report(run)["share_other"] > 0.5


def test_the_language_model_in_validation_is_left_out(small_run):
    class Slow(Callback):
        def on_validation_batch_start(self, trainer, *_):
            with trainer.datamodule.timings.measure("language_model"):
                time.sleep(0.1)

    assert report(small_run(Throughput(), Slow(), steps=4, validate_every=2))["seconds"]["language_model"] < 0.3


def test_saving_is_left_out(small_run, monkeypatch):
    save, clock, slept = AtomicCheckpointIO.save_checkpoint, time.perf_counter, []
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(slept))

    def slowly(self, *arguments, **named):
        with self.timings.measure("saving"):
            slept.append(400.0)
        save(self, *arguments, **named)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", slowly)
    export = ExportSAE()
    write = export._write

    def written_slowly(*arguments):
        with export.timings.measure("saving"):
            slept.append(400.0)
        write(*arguments)

    export._write = written_slowly
    run = small_run(Throughput(), export, ModelCheckpoint(every_n_train_steps=2), steps=4)
    assert 0 < report(run)["seconds"]["total"] < min(slept)
    assert len(slept) >= 4


def test_a_resumed_run_counts_its_own_tokens(small_run):
    first = small_run(steps=3)
    first.trainer.save_checkpoint(first.folder / "at3.ckpt")
    run = small_run(Throughput(), steps=6, batches=3, ckpt_path=first.folder / "at3.ckpt")
    assert report(run)["tokens"] == 3 * run.data.batch_tokens


def test_measuring_changes_no_weight(small_run):
    with_it, without = small_run(Throughput(every_n_steps=1), steps=6), small_run(steps=6, folder="other")
    assert torch.equal(with_it.module.saes["sae"].W_enc, without.module.saes["sae"].W_enc)


def test_zero_steps_are_refused():
    with pytest.raises(ConfigError, match="every_n_steps is 0; write 1 or more"):
        Throughput(every_n_steps=0)
