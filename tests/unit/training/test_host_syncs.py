"""A fit whose steps make the host wait for nothing, with all that watches a run; and that what waits is found."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from helpers.host_syncs import HostSyncs
from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks import DeadLatentResampling, FinalValidation, ReconstructionMetrics, RunCheckpoint, Throughput
from lightsae.sae import MECHANISMS, VARIANTS, Matryoshka, mechanisms
from lightsae.sae.variants import trained
from lightsae.training.entries import Entry
from lightsae.training.module import SAEModule

STEPS, FIRST = 40, 17  # the first refresh of the latents' usage, at step 16, waits once a run


class Watched(HostSyncs, Callback):
    """Looks at each step from its first hook on."""

    def __init__(self) -> None:
        HostSyncs.__init__(self)
        self.steps = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step >= FIRST:
            self.__enter__()


class Released(Callback):
    """Ends the look at a step, after its last hook."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > FIRST:
            self.watched.__exit__(None, None, None)
            self.watched.steps += 1


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_of_a_fit_does_not_wait(
    activation_file: Callable[..., str],
    quiet: dict[str, Any],
    tmp_path: Path,
    clip: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightsae.sae.mechanisms.batch_topk.searches_near", lambda pre: False)
    with_k = [name for name, kind in MECHANISMS.items() if "k" in {p.name for p in kind.parameters_of()}]
    saes = {
        name: Entry(partial(VARIANTS[name], d_sae=24, **({"k": 4} if name in with_k else {})))
        for name in trained(MECHANISMS)
    }
    saes["Matryoshka"] = Entry(partial(Matryoshka, d_sae=24, mechanism=mechanisms.BatchTopK(4), order="frequency"))
    watched = Watched()
    callbacks = [
        watched,
        RunCheckpoint(every_n_train_steps=1000),
        ReconstructionMetrics(every_n_steps=1000),
        Throughput(every_n_steps=1000),
        DeadLatentResampling(steps=[1000]),
        FinalValidation(),
        Released(watched),
    ]
    trainer = Trainer(
        **(quiet | {"enable_checkpointing": True}),
        max_steps=STEPS,
        callbacks=callbacks,
        default_root_dir=tmp_path,
        gradient_clip_val=clip,
        log_every_n_steps=1000,
    )
    trainer.fit(SAEModule(saes=saes, dead_after=200), ActivationDataModule(
        activations=activation_file(2000), batch_tokens=64, buffer_tokens=512, seed=3
    ))  # fmt: skip
    assert watched.steps == STEPS - FIRST
    assert watched.found == []


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "nonzero": lambda x: x.nonzero(),
    "boolean index": lambda x: x[x > 0],
    "boolean assignment": lambda x: x.index_put_((x > 0,), x.new_zeros(())),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.abs().long().bincount(),
    "equal": lambda x: torch.equal(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(x.abs().long()),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_found(name: str) -> None:
    with HostSyncs() as syncs:
        WAITING[name](torch.arange(-3.0, 5.0))
    assert syncs.found


def test_copies_are_found_on_meta_tensors_alone() -> None:
    x = torch.ones(3)
    with HostSyncs("meta") as syncs:
        on_device = x.to("meta", non_blocking=True)
        on_device.to("cpu", non_blocking=True)
        x.sum().item()
        on_device.repeat_interleave(on_device.long(), output_size=5)
        assert syncs.found == []
        on_device.cpu()
        x.to("meta")
        on_device.copy_(x)
        torch.tensor([1.0, 2.0], device="meta")
    assert len(syncs.found) == 4
    assert all("elsewhere" in place for place in syncs.found)
