"""ReconstructionMetrics: figures that agree with formulas over all tokens at once, and observe only."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lightsae.activations.batch import ActivationBatch
from lightsae.callbacks.reconstruction_metrics import (
    ReconstructionMetrics,
    firing_counts,
    l0_per_token,
    positive_latents,
)
from lightsae.errors import ConfigError
from lightsae.sae import BatchTopK, Matryoshka, SAEOutput, SiteRef, SparseLatents, TopK, Widths, mechanisms
from lightsae.training.entries import Entry
from lightsae.training.module import SAEModule

D, F = 8, 32
VAL = {
    *(
        f"val/{name}{suffix}"
        for name in ("fve", "mse", "relative_reconstruction_bias", "cosine")
        for suffix in ("", "_no_sinks")
    ),
    *("val/l0", "val/dead_fraction", "val/dense_fraction", "val/dense_fraction_1pct", "val/tokens"),
}


class Activations(LightningDataModule):
    """Activations of mean 3 with a sink of a hundred times the norm among every 40 tokens."""

    normalisation, seed, run_tokens = "sqrt_d", 0, 1000
    site = next(iter(Widths.of(D).read))

    def batch(self, index: int) -> ActivationBatch:
        x = 3 + torch.randn(64, D, generator=torch.Generator().manual_seed(index))
        ids = torch.arange(64)
        sinks = ids % 40 == 7
        return ActivationBatch(
            {self.site: torch.where(sinks[:, None], 100 * x, x)}, ids, ids, ids, ids, torch.zeros_like(sinks),
            {self.site: sinks},
        )  # fmt: skip

    def widths_at(self, *_place: Any) -> Widths:
        return Widths.of(D)

    def sample_without_sinks(self, sites: Collection[SiteRef]) -> dict[SiteRef, torch.Tensor]:
        batch = self.batch(1000)
        return {site: batch.activations[site][~batch.sinks[site]] for site in sites}

    def train_dataloader(self):
        return DataLoader(range(100), batch_size=None, collate_fn=self.batch)

    def val_dataloader(self):
        return DataLoader(range(2000, 2003), batch_size=None, collate_fn=self.batch)


def fit(root: Path, callbacks: list[Callback], *, logger: bool = True, **options) -> tuple[Trainer, SAEModule]:
    seed_everything(0, verbose=False)
    module = SAEModule(lambda widths: TopK(widths, d_sae=F, k=4), dead_after=200)
    trainer = Trainer(
        max_steps=12, val_check_interval=6, check_val_every_n_epoch=None, num_sanity_val_steps=0, accelerator="cpu",
        logger=TensorBoardLogger(root) if logger else False, callbacks=callbacks, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(module, Activations())
    return trainer, module


class Collect(Callback):
    """Keeps what validation saw in its last epoch, and the training figures of each step."""

    def __init__(self) -> None:
        self.batches, self.training = [], []

    def on_validation_epoch_start(self, trainer, pl_module):
        self.batches = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.batches.append(
            (
                pl_module.targets("sae", batch),
                outputs["sae"].x_hat,
                outputs["sae"].dense_latents(),
                *batch.sinks.values(),
            )
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        x, output = pl_module.targets("sae", batch), outputs["outputs"]["sae"]
        self.training.append((1 - (x - output.x_hat).square().sum() / (x - x.mean(0)).square().sum()).item())


def test_validation_figures_are_exact_over_all_tokens(tmp_path):
    collect = Collect()
    trainer, _ = fit(tmp_path, [ReconstructionMetrics(every_n_steps=3), collect])
    x, x_hat, latents, sinks = (torch.cat(parts).double() for parts in zip(*collect.batches, strict=True))
    figures = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert set(figures) == VAL
    assert len(collect.batches) > 1
    assert figures["val/tokens"] == len(x)
    fve = 1 - (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert figures["val/fve"] == pytest.approx(fve.item(), rel=1e-5)
    x_rest, x_hat_rest = x[sinks == 0], x_hat[sinks == 0]
    fve = 1 - (x_rest - x_hat_rest).square().sum() / (x_rest - x_rest.mean(0)).square().sum()
    assert 0 < sinks.sum() < len(x)
    assert figures["val/fve_no_sinks"] == pytest.approx(fve.item(), rel=1e-5)
    assert figures["val/mse"] == pytest.approx((x - x_hat).square().mean().item(), rel=1e-5)
    assert figures["val/l0"] == pytest.approx((latents > 0).sum(1).double().mean().item(), rel=1e-5)
    frequency = (latents > 0).double().mean(0)
    assert figures["val/dead_fraction"] == pytest.approx((frequency == 0).double().mean().item())
    assert figures["val/dense_fraction"] == pytest.approx((frequency > 0.1).double().mean().item())


def test_training_figures_come_every_n_steps_and_reach_the_progress_bar(tmp_path):
    collect = Collect()
    trainer, _ = fit(tmp_path, [ReconstructionMetrics(every_n_steps=5), collect])
    # Steps 5 and 10 of 12: the last figures are those of step 10.
    assert trainer.callback_metrics["train/fve"].item() == pytest.approx(collect.training[9], rel=1e-5)
    assert 0 < trainer.callback_metrics["train/l0"] <= 4
    assert 0 <= trainer.callback_metrics["train/dead_fraction"] <= 1
    assert {"train/l0", "train/dead_fraction"} <= set(trainer.progress_bar_metrics)
    assert trainer.progress_bar_metrics["train/fve"] == pytest.approx(collect.training[9], rel=1e-5)


def test_while_gradients_accumulate_a_step_is_measured_once(tmp_path, monkeypatch):
    steps = []

    def log(self, name, *_args, **_kwargs):
        steps.extend([self.trainer.global_step] * (name == "train/fve"))

    monkeypatch.setattr(SAEModule, "log", log)
    metrics = ReconstructionMetrics(every_n_steps=2)
    fit(tmp_path, [metrics], logger=False, accumulate_grad_batches=3, limit_val_batches=0)
    assert steps == [2, 4, 6, 8, 10, 12]


def test_tensorboard_gets_scalars_and_histograms(tmp_path):
    trainer, _ = fit(tmp_path, [ReconstructionMetrics(every_n_steps=4)])
    events = EventAccumulator(trainer.loggers[0].log_dir, size_guidance={"histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert VAL | {"train/fve", "train/fve_no_sinks", "train/l0", "train/dead_fraction"} <= set(tags["scalars"])
    for name in ("log10_firing_frequency", "latent_activations", "decoder_norm"):
        assert [event.step for event in events.Histograms(f"histogram/{name}")] == [6, 12]
    norms = events.Histograms("histogram/decoder_norm")[-1].histogram_value
    assert (norms.num, norms.min, norms.max) == (F, pytest.approx(1, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert events.Histograms("histogram/latent_activations")[-1].histogram_value.min > 0


def test_several_dictionaries_are_told_apart(small_run):
    run = small_run(ReconstructionMetrics(every_n_steps=1), steps=4, names=("a", "b"), validate_every=4)
    logged = set(run.trainer.callback_metrics)
    for name in "ab":
        assert {f"{name}/{tag}" for tag in VAL | {"train/fve", "train/l0"}} <= logged
    assert not VAL & logged


def test_mixed_precision_changes_little(tmp_path):
    trainer, _ = fit(tmp_path / "a", [ReconstructionMetrics()], precision="bf16-mixed")
    other, _ = fit(tmp_path / "b", [ReconstructionMetrics()])
    for name in ("val/fve", "val/fve_no_sinks", "val/cosine"):
        assert trainer.callback_metrics[name].item() == pytest.approx(other.callback_metrics[name].item(), abs=0.05)


def test_it_changes_no_weights(tmp_path):
    _, watched = fit(tmp_path / "a", [ReconstructionMetrics(every_n_steps=1)])
    _, alone = fit(tmp_path / "b", [], logger=False, limit_val_batches=0)
    for (name, value), other in zip(alone.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(value, other), name
    assert torch.equal(alone.latent_usage("sae").silent_tokens, watched.latent_usage("sae").silent_tokens)


def test_metrics_are_no_part_of_the_checkpoint(tmp_path):
    _, module = fit(tmp_path, [ReconstructionMetrics()])
    assert not [name for name, _ in module.named_modules() if "metric" in name.lower()]


def test_every_n_steps_has_to_be_positive():
    with pytest.raises(ConfigError, match="every_n_steps is 0; write 1 or more"):
        ReconstructionMetrics(every_n_steps=0)


@pytest.fixture(params=["dense", "rows", "ragged"])
def latents(request) -> tuple[torch.Tensor, torch.Tensor | SparseLatents]:
    """Latents as a dense tensor and in one of the layouts that mechanisms give."""
    dense = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]])
    if request.param == "dense":
        return dense, dense
    if request.param == "ragged":
        return dense, SparseLatents.from_dense(dense)
    values, indices = dense.topk(2, dim=1)  # the second token keeps two zeros, which do not fire
    return dense, SparseLatents.from_rows(values, indices, width=4)


def test_firings_of_every_layout(latents):
    assert l0_per_token(latents[1]).tolist() == [2, 0, 2]
    assert firing_counts(latents[1]).tolist() == [1, 2, 0, 1]


def test_histogram_sample_is_positive_masked_and_capped(latents):
    output = SAEOutput(torch.zeros(3, D), latents[1], torch.zeros(3, D), torch.ones(1))
    everything = torch.ones(3, dtype=torch.bool)
    assert sorted(positive_latents(output, everything).tolist()) == [1, 2, 3, 4]
    assert sorted(positive_latents(output, torch.tensor([False, True, True])).tolist()) == [3, 4]
    assert len(positive_latents(output, everything, limit=3)) == 2


# -- several sites, and two modes ------------------------------------------------------------------------------------


def test_a_dictionary_of_two_modes_has_the_l0_of_both(small_run):
    seen = []

    class Modes(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            sae, x = pl_module.each_sae()["two"], pl_module.inputs("two", batch)
            with torch.no_grad():
                inference = (sae.encode(x) > 0).sum(1)
                in_training = (sae.train().encode(x) > 0).sum(1)
            sae.eval()
            seen.append((inference, in_training))

    entries = {"two": Entry(lambda w: BatchTopK(w, 16, k=3)), "one": Entry(lambda w: TopK(w, 16, k=3))}
    run = small_run(Modes(), ReconstructionMetrics(), steps=4, entries=entries, validate_every=4)
    figures = run.trainer.callback_metrics
    inference, in_training = (torch.cat(parts).float().mean().item() for parts in zip(*seen, strict=True))
    assert figures["two/val/l0"].item() == pytest.approx(inference, rel=1e-6)
    assert figures["two/val/l0_in_training"].item() == pytest.approx(in_training, rel=1e-6)
    assert in_training <= 3
    assert inference != in_training
    assert "one/val/l0_in_training" not in figures
    assert run.module.each_sae()["two"].training, "and it is left in the mode that it was in"


def test_looking_at_the_mode_of_training_changes_nothing(small_run):
    entries = {"two": Entry(lambda w: Matryoshka(w, 16, mechanisms.BatchTopK(3), order="frequency"))}
    watched = small_run(ReconstructionMetrics(every_n_steps=1), steps=6, entries=entries, validate_every=2)
    alone = small_run(steps=6, entries=entries, folder="other")
    for name, tensor in alone.module.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(watched.module.state_dict()[name], tensor), name
