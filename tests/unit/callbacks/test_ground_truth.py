"""Scores against the truth in real runs on synthetic data: a perfect and a random dictionary, and other data."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer, seed_everything

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.activations.synthetic.world import SyntheticConfig, SyntheticWorld
from lightsae.callbacks.ground_truth import GroundTruth, firings
from lightsae.errors import ConfigError
from lightsae.metrics.ground_truth import GroundTruthScores
from lightsae.sae import ReLU, SparseAutoencoder, SparseLatents, TopK, Widths
from lightsae.training.entries import Entry
from lightsae.training.module import SAEModule

WORLD = SyntheticConfig(features=12, width=16, active=3.0)


def perfect(widths: Widths) -> ReLU:
    """A dictionary that takes the activations apart exactly: there are fewer features than dimensions."""
    sae, features = ReLU(widths, d_sae=12), SyntheticWorld(WORLD).features.flip(0)
    with torch.no_grad():
        sae.W_dec.copy_(features)
        sae.W_enc.copy_(torch.linalg.pinv(features))
        sae.b_enc.fill_(-1e-3)
    return sae


def random(widths: Widths) -> TopK:
    return TopK(widths, d_sae=8, k=2)


def run(*callbacks: Callback, fit: bool = False, **saes: Callable[[Widths], SparseAutoencoder]) -> Trainer:
    seed_everything(0, verbose=False)
    data = ActivationDataModule(
        dataset="synthetic", synthetic=WORLD, batch_tokens=64, buffer_tokens=256, val_tokens=256, training_tokens=640
    )
    module = SAEModule(saes={name: Entry(sae) for name, sae in saes.items()})
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    if fit:
        trainer.fit(module, data)
    else:
        trainer.validate(module, data, verbose=False)
    return trainer


class Collect(Callback):
    """Keeps what fired in validation."""

    def __init__(self) -> None:
        self.latents: list[torch.Tensor] = []
        self.truth: list[torch.Tensor] = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.latents.append(outputs["sae"].dense_latents() > 0)
        self.truth.append(batch.truth.to_dense() > 0)


def figures(trainer: Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items() if "truth" in name}


def test_a_perfect_dictionary_scores_one_and_a_random_one_low() -> None:
    scores = figures(run(GroundTruth(), good=perfect, bad=random))
    names = {"mcc", "recovered", "f1", "precision", "recall", "recovered_1e-1", "f1_1e-1"}
    assert set(scores) == {
        *(f"good/val/truth/{name}" for name in names),
        *(f"bad/val/truth/{name}" for name in (*names, "recovered_most_frequent")),
    }
    for name in names:
        assert scores[f"good/val/truth/{name}"] == pytest.approx(1, abs=1e-5)
    assert scores["bad/val/truth/recovered"] == 0
    assert scores["bad/val/truth/mcc"] < 0.8
    assert scores["bad/val/truth/f1"] < 0.8


def test_figures_are_those_over_all_held_out_tokens() -> None:
    collect = Collect()
    trainer = run(GroundTruth(threshold=0.4), collect, fit=True, sae=random)
    world = trainer.datamodule.synthetic_world
    assert len(collect.truth) == 4
    sae = trainer.lightning_module.each_sae()["sae"]
    scores = GroundTruthScores(sae.W_dec.detach(), world.features, world.probabilities, threshold=0.4)
    latents, truth = torch.cat(collect.latents), torch.cat(collect.truth)
    scores.update(*latents.nonzero(as_tuple=True), *truth.nonzero(as_tuple=True))
    expected = {f"val/truth/{key}": value.item() for key, value in scores.compute().items()}
    assert figures(trainer) == pytest.approx(expected)
    assert 0 < expected["val/truth/recovered"] < 1


def test_other_data_have_no_truth(small_run: Any) -> None:
    ran = small_run(GroundTruth(), steps=2, validate_every=2)
    assert not figures(ran.trainer)


def test_it_changes_no_weights() -> None:
    watched, alone = (run(*callbacks, fit=True, sae=random) for callbacks in ([GroundTruth()], []))
    modules = [trainer.lightning_module for trainer in (watched, alone)]
    one, other = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in modules)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_firings_of_every_layout() -> None:
    dense = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]])
    values, indices = dense.topk(2, dim=1)  # the second token keeps two zeros, which do not fire
    for latents in (dense, SparseLatents.from_dense(dense), SparseLatents.from_rows(values, indices, width=4)):
        tokens, fired = firings(latents)
        assert sorted(zip(tokens.tolist(), fired.tolist(), strict=True)) == [(0, 1), (0, 3), (2, 0), (2, 1)]


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_the_threshold_is_a_cosine(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"threshold is .*; write a cosine"):
        GroundTruth(threshold)
