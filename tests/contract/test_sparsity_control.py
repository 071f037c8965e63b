"""What a user sets for sparsity is what comes out: coefficients order L0, a target is hit."""

import pytest
from lightning import Trainer

from lightsae import ActivationDataModule, JumpReLU, SAEModule
from lightsae.activations.synthetic.config import SyntheticConfig
from lightsae.callbacks import ReconstructionMetrics
from lightsae.training.entries import Entry

COEFFICIENTS = (0.003, 0.01, 0.03)
TARGET = 8.0


@pytest.fixture(scope="module")
def l0(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    entries = {f"l0_{c}".replace(".", "_"): c for c in COEFFICIENTS}
    saes = {name: Entry(lambda w: JumpReLU(w, 128), coefficients={"l0_penalty": c}) for name, c in entries.items()}
    saes["target"] = Entry(lambda w: JumpReLU(w, 128, target_l0=TARGET))
    world = SyntheticConfig(features=96, width=32, active=4.0)
    data = ActivationDataModule(
        dataset="synthetic", synthetic=world, batch_tokens=256, buffer_tokens=16384, val_tokens=16384, seed=0
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=500,
        callbacks=[ReconstructionMetrics()],
        default_root_dir=tmp_path_factory.mktemp("sparsity"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    module = SAEModule(saes=saes, lr=3e-3)
    trainer.fit(module, data)
    trainer.limit_val_batches = 1.0
    trainer.validate(module, data, verbose=False)
    return {name: float(trainer.callback_metrics[f"{name}/val/l0"]) for name in saes}


def test_a_larger_coefficient_leaves_fewer_latents(l0: dict[str, float]) -> None:
    latents_per_token = [l0[f"l0_{c}".replace(".", "_")] for c in COEFFICIENTS]
    assert latents_per_token[0] > 1.2 * latents_per_token[1] > 1.2 * 1.2 * latents_per_token[2], latents_per_token


def test_a_target_is_hit_within_5_percent(l0: dict[str, float]) -> None:
    assert l0["target"] == pytest.approx(TARGET, rel=0.05)
