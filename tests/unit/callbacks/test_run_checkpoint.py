"""The run's checkpoint: when it is written, what a signal does, and that a resume from it is exact."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks import Interrupted, RunCheckpoint
from lightsae.sae import TopK
from lightsae.training.checkpoint_io import AtomicCheckpointIO
from lightsae.training.module import SAEModule


class Stop(Exception):
    """The run dies."""


class At(Callback):
    """Do something after a batch of this session, counted from 1."""

    def __init__(self, batch: int, do: Callable[[], None]) -> None:
        self.left, self.do = batch, do

    def on_train_batch_end(self, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.do()


def die() -> None:
    raise Stop


def send(number: int, times: int = 1) -> Callable[[], None]:
    def do() -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    return do


@pytest.fixture
def handlers() -> Any:
    """Signal handlers are global: put them back, and say what they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


class Run:
    def __init__(self, folder: Path, path: str, quiet: dict[str, Any]) -> None:
        self.folder, self.path, self.quiet = folder, path, quiet
        self.last = folder / "checkpoints" / "last.ckpt"

    def fit(
        self, *callbacks: Callback, every: int = 4, steps: int = 11, resume: bool = False, **options: Any
    ) -> SAEModule:
        self.module = SAEModule(lambda widths: TopK(widths, d_sae=32, k=2), lr=0.01, dead_after=100)
        data = ActivationDataModule(activations=self.path, batch_tokens=32, buffer_tokens=256)
        self.checkpoint = RunCheckpoint(every_n_train_steps=every)
        self.trainer = Trainer(
            **(self.quiet | {"enable_checkpointing": True} | options),
            max_steps=steps,
            default_root_dir=self.folder,
            callbacks=[self.checkpoint, *callbacks],
            plugins=[AtomicCheckpointIO()],
        )
        self.trainer.fit(self.module, data, ckpt_path=self.last if resume else None)
        return self.module

    def step(self) -> int:
        return int(torch.load(self.last, weights_only=True)["global_step"])

    def served(self) -> int:
        return int(torch.load(self.last, weights_only=True)["ActivationDataModule"]["served_batches"])


@pytest.fixture
def run(tmp_path: Path, activation_file: Callable[..., str], quiet: dict[str, Any]) -> Run:
    return Run(tmp_path / "run", activation_file(), quiet)


@pytest.fixture
def other(tmp_path: Path, activation_file: Callable[..., str], quiet: dict[str, Any]) -> Run:
    return Run(tmp_path / "other", activation_file(), quiet)


def equal(a: SAEModule, b: SAEModule) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return all(
        torch.equal(left[key], right[key]) if isinstance(left[key], torch.Tensor) else left[key] == right[key]
        for key in left | right
    )


pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def test_one_file_of_the_last_step(run: Run) -> None:
    run.fit()
    assert [p.name for p in run.last.parent.iterdir()] == ["last.ckpt"]
    assert run.step() == run.served() == 11


def test_saved_every_n_steps(run: Run) -> None:
    for batches, step in ((4, 4), (7, 4), (8, 8), (9, 8)):
        with pytest.raises(Stop):
            run.fit(At(batches, die))
        # `At` stands before the checkpoint of the same batch.
        assert run.step() == (step if batches % 4 else step - 4) if batches != 4 else True


def test_resumed_after_death_ends_in_the_same_bits(run: Run, other: Run) -> None:
    whole = other.fit()
    with pytest.raises(Stop):
        run.fit(At(7, die))
    assert run.step() == 4
    with pytest.raises(Stop):
        run.fit(At(6, die), resume=True)
    assert run.step() == 8
    assert equal(run.fit(resume=True), whole)


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_resumed_twice_under_accumulation(run: Run, other: Run, batches: int) -> None:
    """The second death comes within a few batches of the first resume, in the middle of a step."""
    whole = other.fit(accumulate_grad_batches=3)
    with pytest.raises(Stop):
        run.fit(At(14, die), accumulate_grad_batches=3)
    assert (run.step(), run.served()) == (4, 12)
    with pytest.raises(Stop):
        run.fit(At(batches + 1, die), accumulate_grad_batches=3, resume=True)
    assert (run.step(), run.served()) == (4, 12), "no checkpoint in the middle of a step"
    assert equal(run.fit(accumulate_grad_batches=3, resume=True), whole)


def test_a_run_that_is_done_can_go_on(run: Run) -> None:
    run.fit(steps=7)
    module = run.fit(steps=19, resume=True)
    assert (run.trainer.global_step, run.step(), run.served(), module.tokens_seen) == (19, 19, 19, 19 * 32)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_step_at_which_it_came(run: Run, other: Run, number: int) -> None:
    whole = other.fit()
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run.fit(At(6, send(number)))
    assert run.step() == run.served() == 6
    assert run.trainer.global_step == 6
    assert equal(run.fit(resume=True), whole)


@pytest.mark.usefixtures("handlers")
def test_a_signal_within_a_step_waits_for_its_end(run: Run, other: Run) -> None:
    whole = other.fit(accumulate_grad_batches=3)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run.fit(At(7, send(signal.SIGTERM)), accumulate_grad_batches=3)
    assert (run.step(), run.served()) == (3, 9)
    assert equal(run.fit(accumulate_grad_batches=3, resume=True), whole)


@pytest.mark.usefixtures("handlers")
def test_the_signal_is_told(run: Run) -> None:
    raised: list[BaseException] = []

    class Note(Callback):
        def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
            raised.append(exception)

    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run.fit(At(2, send(signal.SIGTERM)), Note())
    assert isinstance(raised[0], Interrupted)
    assert raised[0].signal_number == signal.SIGTERM


@pytest.mark.usefixtures("handlers")
def test_a_second_signal_stops_at_once_and_keeps_the_last_whole_step(run: Run) -> None:
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run.fit(At(6, send(signal.SIGINT, times=2)))
    assert run.step() == 4


@pytest.mark.parametrize("end", ["done", "died", "signal"])
def test_handlers_are_put_back(run: Run, handlers: dict[int, Any], end: str) -> None:
    if end == "done":
        run.fit()
    elif end == "died":
        with pytest.raises(Stop):
            run.fit(At(2, die))
    else:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            run.fit(At(2, send(signal.SIGTERM)))
    assert signal.getsignal(signal.SIGTERM) == handlers[signal.SIGTERM]
    if end != "signal":  # Lightning itself ignores Ctrl-C for good after the first
        assert signal.getsignal(signal.SIGINT) == handlers[signal.SIGINT]


@pytest.mark.usefixtures("handlers")
def test_used_again_it_has_forgotten_the_signal(run: Run) -> None:
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run.fit(At(2, send(signal.SIGTERM)))
    checkpoint = run.checkpoint
    module = SAEModule(lambda widths: TopK(widths, d_sae=32, k=2))
    data = ActivationDataModule(activations=run.path, batch_tokens=32, buffer_tokens=256)
    options = run.quiet | {"enable_checkpointing": True, "default_root_dir": run.folder}
    trainer = Trainer(**options, max_steps=5, callbacks=[checkpoint], plugins=[AtomicCheckpointIO()])
    trainer.fit(module, data)
    assert trainer.global_step == 5


def test_observing_it_changes_no_bit(run: Run, quiet: dict[str, Any]) -> None:
    saved = run.fit(every=1)
    module = SAEModule(lambda widths: TopK(widths, d_sae=32, k=2), lr=0.01, dead_after=100)
    Trainer(**quiet, max_steps=11).fit(
        module, ActivationDataModule(activations=run.path, batch_tokens=32, buffer_tokens=256)
    )
    assert equal(module, saved)


def test_a_fast_dev_run_writes_nothing(run: Run, quiet: dict[str, Any]) -> None:
    module = SAEModule(lambda widths: TopK(widths, d_sae=32, k=2))
    data = ActivationDataModule(activations=run.path, batch_tokens=32, buffer_tokens=256)
    Trainer(
        **(quiet | {"enable_checkpointing": True}),
        fast_dev_run=2,
        default_root_dir=run.folder,
        callbacks=[RunCheckpoint()],
    ).fit(module, data)
    assert not run.last.exists()
