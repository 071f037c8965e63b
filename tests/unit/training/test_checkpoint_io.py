"""Checkpoints: whole or not at all on the disk, and never unpickled into objects."""

import resource
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer

from lightsae.errors import CheckpointError, ConfigError
from lightsae.training.checkpoint_io import AtomicCheckpointIO

STATE = {
    "state_dict": {"w": torch.arange(2000.0)},
    "pytorch-lightning_version": "2.6.0",
    "global_step": 3,
    "callbacks": {"a": [1, "b", None]},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path / "checkpoints" / "last.ckpt"


def refused(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        AtomicCheckpointIO().load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_round_trip_changes_nothing_and_leaves_nothing_beside(saved):
    loaded = AtomicCheckpointIO().load_checkpoint(saved)
    assert torch.equal(loaded["state_dict"]["w"], STATE["state_dict"]["w"])
    assert loaded["callbacks"] == STATE["callbacks"]
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_saving_is_timed(tmp_path):
    io = AtomicCheckpointIO()
    io.save_checkpoint(STATE, tmp_path / "a.ckpt")
    assert io.timings.totals()["saving"] > 0


def test_a_full_disk_keeps_the_old_checkpoint(saved):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        with pytest.raises(ConfigError, match=r"Cannot write '.*last.ckpt'"):
            AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert AtomicCheckpointIO().load_checkpoint(saved)["global_step"] == 3
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_a_missing_checkpoint_suggests_the_nearest(saved):
    refused(saved.with_name("lst.ckpt"), r"does not exist\. Did you mean 'last.ckpt'\?")


@pytest.mark.parametrize("keep", [0, 10, 500, -1])
def test_a_truncated_checkpoint(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    refused(saved, "is damaged or cut short; use an earlier one")


def test_a_flipped_bit_in_the_weights(saved):
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    saved.write_bytes(data)
    refused(saved, "is damaged")


def test_text_in_place_of_a_checkpoint(saved):
    saved.write_text("hello world " * 30)
    refused(saved, "is damaged or cut short")


class Payload:
    def __reduce__(self):
        return (Path, ("opened",))


@pytest.mark.parametrize("weights_only", [None, False, True])
def test_objects_are_never_unpickled(saved, weights_only):
    torch.save({"state_dict": {}, "payload": Payload()}, saved)
    with pytest.raises(CheckpointError, match="holds Python objects, which are never unpickled here"):
        AtomicCheckpointIO().load_checkpoint(saved, weights_only=weights_only)


@pytest.mark.parametrize("content", [torch.zeros(3), {"weights": torch.zeros(3)}])
def test_a_tensor_file_that_is_no_training_checkpoint(saved, content):
    torch.save(content, saved)
    refused(saved, "is not a training checkpoint")


def test_the_trainer_saves_and_resumes_through_it(tmp_path):
    class Tiny(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).mean()

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(3, 2))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.1)

    def fit(steps, path=None):
        settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(
            max_steps=steps, accelerator="cpu", enable_checkpointing=False, plugins=[AtomicCheckpointIO()], **settings
        )
        torch.manual_seed(0)
        module = Tiny()
        trainer.fit(module, ckpt_path=path)
        return trainer, module

    trainer, _ = fit(3)
    trainer.save_checkpoint(tmp_path / "at3.ckpt")
    assert torch.equal(fit(6, tmp_path / "at3.ckpt")[1].layer.weight, fit(6)[1].layer.weight)
