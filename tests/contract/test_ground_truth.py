"""Every mechanism finds the features that its data are made of."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning import Trainer

from lightsae import ActivationDataModule, BatchTopK, Gated, JumpReLU, ReLU, SAEModule, TopK
from lightsae.activations.synthetic.config import SyntheticConfig
from lightsae.callbacks.ground_truth import GroundTruth
from lightsae.sae import Refinements, SparseAutoencoder, Widths
from lightsae.training.entries import Entry

D_SAE, ACTIVE = 192, 3
REFINED = Refinements(aligned=True, second_step=0.3)


def entry(make: Callable[[Widths], SparseAutoencoder], **settings: float) -> Entry:
    return Entry(make, coefficients=dict(settings))


# More features than dimensions, as in `dataset: synthetic`, on a scale that trains in seconds.
WORLD = SyntheticConfig(features=96, width=32, active=float(ACTIVE))
ENTRIES = {
    "TopK": entry(lambda w: TopK(w, D_SAE, ACTIVE)),
    "BatchTopK": entry(lambda w: BatchTopK(w, D_SAE, ACTIVE, refinements=REFINED)),
    "JumpReLU": entry(lambda w: JumpReLU(w, D_SAE, refinements=REFINED), l0_penalty=0.06),
    "Gated": entry(lambda w: Gated(w, D_SAE), l1=0.1),
    "ReLU": entry(lambda w: ReLU(w, D_SAE), l1=3.0),
}
RECOVERED = {"TopK": 0.95, "BatchTopK": 0.95, "JumpReLU": 0.95, "Gated": 0.95, "ReLU": 0.9}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    data = ActivationDataModule(
        dataset="synthetic", synthetic=WORLD, batch_tokens=512, buffer_tokens=65536, val_tokens=32768, seed=0
    )
    module = SAEModule(saes=ENTRIES, lr=5e-3)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=700,
        callbacks=[GroundTruth()],
        default_root_dir=tmp_path_factory.mktemp("truth"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0,
        val_check_interval=None,
    )
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("name", RECOVERED)
def test_the_features_are_recovered(name: str, figures: dict[str, float]) -> None:
    assert figures[f"{name}/val/truth/recovered"] >= RECOVERED[name]


def test_an_untrained_dictionary_recovers_none(tmp_path: Path) -> None:
    data = ActivationDataModule(
        dataset="synthetic", synthetic=WORLD, batch_tokens=512, buffer_tokens=8192, val_tokens=4096, seed=0
    )
    module = SAEModule(lambda w: TopK(w, D_SAE, ACTIVE))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[GroundTruth()], default_root_dir=tmp_path
    )
    trainer.validate(module, data, verbose=False)
    assert trainer.callback_metrics["val/truth/recovered"] < 0.05
