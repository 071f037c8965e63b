"""The training curves: read from the events of all sessions, drawn against tokens."""

import struct

import torch
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import ScalarEvent
from torch.utils.tensorboard import SummaryWriter

from lightsae.callbacks.training_curves import PANELS, TrainingCurves, draw, latest, read_curves


class Figures(Callback):
    """Logs what other callbacks log in a real run."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name in pl_module.saes:
            for tag in ("train/fve", "train/l0", "train/dead_fraction"):
                pl_module.log(pl_module.tag(name, tag), float(batch_idx))

    def on_validation_epoch_end(self, trainer, pl_module):
        for name in pl_module.saes:
            for tag in ("val/fve", "val/l0", "val/dead_fraction"):
                pl_module.log(pl_module.tag(name, tag), float(trainer.global_step))


def test_a_run_ends_with_its_picture(small_run):
    run = small_run(TrainingCurves(), Figures(), steps=6, validate_every=3)
    data = (run.folder / "training_curves.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1500, 960)


def test_curves_are_against_tokens(small_run):
    run = small_run(Figures(), steps=6, validate_every=3)
    curves = read_curves(run.folder, ["train/fve", "val/fve", "val/none"], float(run.data.batch_tokens))
    assert curves.keys() == {"train/fve", "val/fve"}
    assert curves["train/fve"] == ([32, 64, 96, 128, 160, 192], [0, 1, 2, 3, 4, 5])
    assert curves["val/fve"] == ([96, 192], [3, 6])


def test_a_resumed_session_overrides_what_it_trained_again(tmp_path):
    for start, steps, value in ((0, 8, 1.0), (4, 12, 2.0)):
        # A session's file is named by the second: two of the same second need a suffix.
        with SummaryWriter(str(tmp_path), filename_suffix=f".{start}") as writer:
            for step in range(start, steps, 2):
                writer.add_scalar("train/loss", value, step)
    assert read_curves(tmp_path, ["train/loss"], 10.0)["train/loss"] == (
        [10, 30, 50, 70, 90, 110],
        [1.0, 1.0, 2.0, 2.0, 2.0, 2.0],
    )


def test_orphaned_points_are_dropped():
    first = [ScalarEvent(wall_time=step, step=step, value=1.0) for step in (1, 3, 5, 7)]
    second = [ScalarEvent(wall_time=100 + step, step=step, value=2.0) for step in (4, 6)]
    assert [(event.step, event.value) for event in latest(second + first)] == [(1, 1.0), (3, 1.0), (4, 2.0), (6, 2.0)]


def test_each_dictionary_has_a_line_and_validation_has_points():
    curve = ([1.0, 2.0], [0.5, 0.6])
    figure = draw({name: {"train/fve": curve, "val/fve": curve} for name in ("a", "b")})
    by_title = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(by_title) == list(PANELS.values())
    labels = [line.get_label() for line in by_title[PANELS["fve"]].lines]
    assert labels == ["a, training", "a, validation", "b, training", "b, validation"]
    assert not by_title[PANELS["loss"]].lines


def test_several_dictionaries_and_partial_logging_are_drawn(small_run):
    run = small_run(TrainingCurves(), steps=2, names=("a", "b"))
    assert (run.folder / "training_curves.png").stat().st_size > 0


def test_without_tensorboard_nothing_is_drawn(small_run, tmp_path):
    small_run(TrainingCurves(), steps=2, logger=False, default_root_dir=tmp_path)
    assert not list(tmp_path.rglob("*.png"))


def test_drawing_changes_no_weight(small_run):
    with_it, without = small_run(TrainingCurves(), steps=4), small_run(steps=4, folder="other")
    assert torch.equal(with_it.module.saes["sae"].W_enc, without.module.saes["sae"].W_enc)
