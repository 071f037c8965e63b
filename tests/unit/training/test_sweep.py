"""Many dictionaries in one run: each ends as it would alone, resumed or not, whatever the others and validation do."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks import DeadLatentResampling, ReconstructionMetrics
from lightsae.sae import (
    MECHANISMS,
    BatchTopK,
    Crosscoder,
    Gated,
    GroupMax,
    JumpReLU,
    LatentUsage,
    Matryoshka,
    ReLU,
    Transcoder,
    mechanisms,
)
from lightsae.sae import TopK as PlainTopK
from lightsae.sae.mechanisms.batch_topk import DECAY
from lightsae.sae.variants import trained
from lightsae.training.checkpoint_io import AtomicCheckpointIO
from lightsae.training.entries import Entry
from lightsae.training.module import SAEModule
from lightsae.training.schedules import Schedule

STEPS, RESAMPLED = 16, (7, 12)
RESID, ACT, LAST = "resid_post.0", "mlp_act.0", "resid_post.1"


def entries() -> dict[str, Entry]:
    """Every variant, at several sites, of several widths, each with something that changes over the run."""
    l1 = Schedule(0.05, warm_up=10.0)
    return {
        "relu": Entry(lambda w: ReLU(w, 24, "unit"), RESID, coefficients={"l1": l1}, lr=0.02),
        "relu-last": Entry(lambda w: ReLU(w, 20), LAST, coefficients={"l1": l1}, start="data"),
        "annealed": Entry(lambda w: ReLU(w, 18, p_end=0.2, p_begin=0.3), ACT, coefficients={"l1": 0.1}),
        "topk": Entry(lambda w: PlainTopK(w, 96, k=2, k_aux=4, k_start=8, multi_k=6), RESID),
        "batch_topk": Entry(lambda w: BatchTopK(w, 30, k=3, k_start=6), ACT),
        "group_max": Entry(lambda w: GroupMax(w, 32, k=4, k_aux=4), RESID),
        "matryoshka": Entry(lambda w: Matryoshka(w, 64, mechanisms.BatchTopK(2), order="frequency"), LAST),
        "nested": Entry(lambda w: Matryoshka(w, 12, mechanisms.TopK(3), groups=[4, 8], detach_inner=True), RESID),
        "transcoder": Entry(lambda w: Transcoder(w, 22, mechanisms.ReLU(), skip=True), RESID, ACT),
        "transcoder_k": Entry(lambda w: Transcoder(w, 40, mechanisms.BatchTopK(2)), LAST, RESID),
        "crosscoder": Entry(lambda w: Crosscoder(w, 26, mechanisms.BatchTopK(4)), [RESID, ACT]),
        "crosscoder_relu": Entry(lambda w: Crosscoder(w, 28, mechanisms.ReLU()), [ACT, LAST], coefficients={"l1": l1}),
        "jumprelu": Entry(lambda w: JumpReLU(w, 25, target_l0=4.0), RESID),
        "transcoder_tanh": Entry(lambda w: Transcoder(w, 21, mechanisms.JumpReLU("tanh")), LAST, ACT),
        "gated": Entry(lambda w: Gated(w, 23), ACT),
    }


def test_every_mechanism_and_structure_is_in_the_sweep(tiny_text: Any) -> None:
    data = ActivationDataModule(**settings(tiny_text))
    module = SAEModule(saes=entries())
    built = module.build(data).values()
    assert {type(sae.mechanism) for sae in built} == set(trained(MECHANISMS).values())
    assert {ReLU, PlainTopK, BatchTopK, Matryoshka, Transcoder, Crosscoder} <= {type(sae) for sae in built}


class Silence(Callback):
    """Some latents of each dictionary start far too low to fire: something for resampling and for AuxK."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            with torch.no_grad():
                for sae in pl_module.each_sae().values():
                    sae.b_enc[:5] = -20


class Keep(Callback):
    """Save a checkpoint after some steps. Stands last, where Lightning puts its own."""

    def __init__(self, folder: Path, *steps: int) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.at(trainer.global_step))

    def at(self, step: int) -> Path:
        return self.folder / f"step={step}.ckpt"


def settings(tiny_text: Any) -> dict[str, Any]:
    return {
        "model": tiny_text.model, "dataset": tiny_text.corpus, "context_size": 8, "batch_tokens": 32,
        "buffer_tokens": 128, "shuffle_tokens": 256, "val_tokens": 32, "num_workers": 0, "seed": 3,
    }  # fmt: skip


Fit = Callable[..., tuple[SAEModule, Trainer]]


@pytest.fixture
def fit(tiny_text: Any, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Train some of the entries, all at once, with clipping and resampling."""
    monkeypatch.setattr(LatentUsage, "REFRESH_STEPS", 4)

    def train(
        saes: dict[str, Entry], *callbacks: Callback, ckpt_path: Path | None = None, **options: Any
    ) -> tuple[SAEModule, Trainer]:
        torch.manual_seed(len(saes) + len(callbacks))  # the global generator must not matter
        acting = [Silence(), DeadLatentResampling(RESAMPLED, at_most=3)]
        module = SAEModule(saes=saes, lr=0.01, dead_after=64, coefficients={"mse": 2.0})
        trainer = Trainer(
            **(quiet | {"max_steps": STEPS, "gradient_clip_val": 0.1} | options),
            callbacks=[*acting, *callbacks],
            plugins=[AtomicCheckpointIO()],
        )
        trainer.fit(module, ActivationDataModule(**settings(tiny_text)), ckpt_path=ckpt_path)
        return module, trainer

    return train


def end_of(module: SAEModule, trainer: Trainer, name: str) -> dict[str, Tensor]:
    """All that a dictionary ends with: weights, scales, thresholds, counts, moments."""
    sae, usage = module.each_sae()[name], module.latent_usage(name)
    end = {**sae.state_dict(), **{f"usage {key}": v for key, v in usage.state_dict().items() if key != "_extra_state"}}
    for key, parameter in sae.named_parameters():
        moments = trainer.optimizers[0].state[parameter]
        end |= {f"{key} {moment}": moments[moment] for moment in ("exp_avg", "exp_avg_sq", "step")}
    return end


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


class Watch(Callback):
    """Note what was at work: clipping, AuxK, dead latents at the steps of resampling."""

    def __init__(self) -> None:
        self.auxk: set[str] = set()
        self.clipped: set[str] = set()
        self.dead: set[str] = set()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for name in pl_module.each_sae():
            if len(pl_module.latent_usage(name).dead_list):
                self.auxk.add(name)
            if trainer.global_step + 1 in RESAMPLED and bool(pl_module.latent_usage(name).dead.any()):
                self.dead.add(name)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for name, sae in pl_module.each_sae().items():
            grads = [parameter.grad.norm() for parameter in sae.parameters() if parameter.grad is not None]
            if grads and abs(float(torch.stack(grads).norm()) - 0.1) < 1e-4:
                self.clipped.add(name)


@pytest.mark.parametrize("clip", [0.1, None], ids=["clipped", "normalised"])
def test_each_ends_in_the_bits_that_it_has_alone(fit: Fit, clip: float | None) -> None:
    watch = Watch()
    together, trainer = fit(entries(), watch, gradient_clip_val=clip)
    assert {name for name in entries() if together.each_sae()[name].mechanism.has_auxk} <= watch.auxk
    assert {"relu", "relu-last", "transcoder"} <= watch.dead, "there was something to resample"
    assert len(watch.clipped) > len(entries()) / 2 or clip is None, "clipping was at work"
    for name, entry in entries().items():
        alone, its_trainer = fit({name: entry}, gradient_clip_val=clip)
        assert not differing(end_of(together, trainer, name), end_of(alone, its_trainer, name)), name


def test_the_short_form_is_an_entry_alone(fit: Fit, tiny_text: Any, quiet: dict[str, Any]) -> None:
    together, trainer = fit({name: entries()[name] for name in ("relu", "batch_topk")})
    batch_topk = entries()["batch_topk"].sae
    module = SAEModule(batch_topk, lr=0.01, dead_after=64, coefficients={"mse": 2.0})
    alone = Trainer(
        **quiet, max_steps=STEPS, gradient_clip_val=0.1,
        callbacks=[Silence(), DeadLatentResampling(RESAMPLED, at_most=3)],
    )  # fmt: skip
    alone.fit(module, ActivationDataModule(**settings(tiny_text), site=ACT))
    assert not differing(end_of(together, trainer, "batch_topk"), end_of(module, alone, "sae"))


def test_a_resumed_sweep_ends_in_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    keep = Keep(tmp_path, 1, 9)
    whole, trainer = fit(entries(), keep)
    for step in keep.steps:
        resumed, its_trainer = fit(entries(), ckpt_path=keep.at(step))
        assert resumed.tokens_seen == whole.tokens_seen == STEPS * 32
        for name in entries():
            assert not differing(end_of(whole, trainer, name), end_of(resumed, its_trainer, name)), (step, name)


def test_the_order_of_the_entries_does_not_matter(fit: Fit) -> None:
    chosen = {name: entries()[name] for name in ("topk", "crosscoder", "relu")}
    first, trainer = fit(chosen)
    other = {"annealed": entries()["annealed"]}
    second, its_trainer = fit(other | dict(reversed(chosen.items())))
    for name in chosen:
        assert not differing(end_of(first, trainer, name), end_of(second, its_trainer, name)), name


# -- modes -----------------------------------------------------------------------------------------------------------

TWO_MODES = ("batch_topk", "matryoshka", "transcoder_k", "crosscoder")


def test_thresholds_are_learned_in_training_and_not_by_validation(fit: Fit) -> None:
    chosen = {name: entries()[name] for name in ("batch_topk", "matryoshka", "annealed")}
    silent, trainer = fit(chosen)
    validating = {"limit_val_batches": 1.0, "val_check_interval": 3, "check_val_every_n_epoch": None}
    watched, its_trainer = fit(chosen, ReconstructionMetrics(every_n_steps=1), num_sanity_val_steps=1, **validating)
    for name in chosen:
        assert not differing(end_of(silent, trainer, name), end_of(watched, its_trainer, name)), name


def test_a_validation_alone_changes_nothing(fit: Fit, tiny_text: Any) -> None:
    chosen = {name: entries()[name] for name in TWO_MODES}
    module, trainer = fit(chosen)
    before = {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    trainer.limit_val_batches = 1.0
    trainer.validate(module, ActivationDataModule(**settings(tiny_text)), verbose=False)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


def test_thresholds_follow_the_training(fit: Fit) -> None:
    class Thresholds(Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            saes = pl_module.each_sae()
            self.seen.append({name: float(saes[name].mechanism.threshold) for name in TWO_MODES})

    thresholds = Thresholds()
    fit({name: entries()[name] for name in TWO_MODES}, thresholds)
    for name in TWO_MODES:
        values = [seen[name] for seen in thresholds.seen]
        assert min(values) > 0, name
        assert len(set(values)) == STEPS, name
        # A running mean of long memory: no step moves it far.
        assert max(abs(b - a) / a for a, b in pairwise(values)) < 0.05, name


def test_validation_serves_what_inference_gives(fit: Fit) -> None:
    """In validation the thresholded dictionary is measured, in training the batch's largest latents are."""
    figures: dict[str, float] = {}
    modes: set[tuple[str, bool]] = set()

    class Modes(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            modes.update(("training", sae.mechanism.training) for sae in pl_module.each_sae().values())

        def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            modes.update(("validation", sae.mechanism.training) for sae in pl_module.each_sae().values())

        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            figures.update({name: float(value) for name, value in trainer.callback_metrics.items()})

    chosen = {name: entries()[name] for name in TWO_MODES}
    options = {"limit_val_batches": 1.0, "val_check_interval": 8, "check_val_every_n_epoch": None}
    fit(chosen, ReconstructionMetrics(every_n_steps=8), Modes(), **options)
    assert modes == {("training", True), ("validation", False)}
    for name, k in zip(TWO_MODES, (3, 2, 2, 4), strict=True):
        assert figures[f"{name}/val/l0_in_training"] <= k
        assert figures[f"{name}/val/l0"] != figures[f"{name}/val/l0_in_training"]


# -- several processes -----------------------------------------------------------------------------------------------


class Report(Callback):
    """Every process writes down where it ended, and what each of its batches said by itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.smallest: list[float] = []
        self.thresholds: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        values = outputs["outputs"]["batch_topk"].latents.values
        self.smallest.append(float(values[values > 0].min()))
        self.thresholds.append(float(pl_module.each_sae()["batch_topk"].mechanism.threshold))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        end = {"state": pl_module.state_dict(), "smallest": self.smallest, "thresholds": self.thresholds}
        torch.save(end, self.folder / f"rank{trainer.global_rank}.pt")


def test_two_processes_agree_on_all_that_is_measured(
    activation_file: Callable[..., str], quiet: dict[str, Any], tmp_path: Path
) -> None:
    saes = {
        "batch_topk": Entry(lambda w: BatchTopK(w, 20, k=3)),
        "matryoshka": Entry(lambda w: Matryoshka(w, 24, mechanisms.BatchTopK(2), order="frequency")),
        "annealed": Entry(lambda w: ReLU(w, 18, p_end=0.2, p_begin=0.3), coefficients={"l1": 0.1}),
        "jumprelu": Entry(lambda w: JumpReLU(w, 16)),
    }
    module = SAEModule(saes=saes, lr=0.01, dead_after=128)
    data = ActivationDataModule(activations=activation_file(), batch_tokens=32, buffer_tokens=256, seed=0)
    callbacks = [DeadLatentResampling([7], at_most=3), Report(tmp_path)]
    trainer = Trainer(**quiet, max_steps=12, strategy="ddp_fork", devices=2, callbacks=callbacks)
    trainer.fit(module, data)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first["state"].items():
        if isinstance(value, Tensor):
            assert torch.equal(value, second["state"][name]), name
    assert first["smallest"] != second["smallest"], "each rank has batches of its own"
    assert (first["state"]["saes.matryoshka.frequency"] > 0).any()
    assert first["state"]["saes.annealed.mechanism.rescale"] != 1
    # The threshold moves towards the smallest that the batch of all ranks kept.
    thresholds = first["thresholds"]
    smallest = [min(pair) for pair in zip(first["smallest"], second["smallest"], strict=True)]
    expected = [DECAY * before + (1 - DECAY) * kept for before, kept in zip(thresholds, smallest[1:], strict=False)]
    assert thresholds[1:] == pytest.approx(expected, rel=1e-5)
