"""A run in a second: the real module on activations out of nothing."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.timings import Timings
from lightsae.sae import ReLU, SiteRef, Widths
from lightsae.training.checkpoint_io import AtomicCheckpointIO
from lightsae.training.entries import Entry
from lightsae.training.module import SAEModule

SITE = SiteRef("toy", "resid_post.0")
WIDTH = 6


class Activations(LightningDataModule):
    """Gaussian activations at one site: each batch follows from its number alone."""

    normalisation, seed, batch_tokens = "sqrt_d", 0, 32

    def __init__(self, batches: int, batches_in_epoch: int | None = None) -> None:
        super().__init__()
        self.batches, self.run_tokens = batches_in_epoch or batches, batches * self.batch_tokens
        self.timings = Timings()

    def batch(self, index: int, whole_rows: bool = False) -> ActivationBatch:
        with self.timings.measure("language_model"):
            generator = torch.Generator().manual_seed(index)
            x = torch.randn(self.batch_tokens, WIDTH, generator=generator) + 2
            ids = torch.arange(self.batch_tokens)
            no = torch.zeros(self.batch_tokens, dtype=torch.bool)
            shape = (4, self.batch_tokens // 4) if whole_rows else None
            return ActivationBatch({SITE: x}, ids, ids, ids, ids, no, {SITE: no}, index, shape)

    def widths_at(self, *_place: Any) -> Widths:
        return Widths.autoencoder(SITE, WIDTH)

    def sample_without_sinks(self, sites: Collection[SiteRef]) -> dict[SiteRef, torch.Tensor]:
        activations = self.batch(10_000).activations
        return {site: activations[site] for site in sites}

    def describe(self) -> dict[str, Any]:
        return {"model": SITE.model, "site": SITE.site, "seed": self.seed}

    def train_dataloader(self) -> Any:
        return DataLoader(range(self.batches), batch_size=None, collate_fn=self.batch)

    def val_dataloader(self) -> Any:
        return DataLoader(range(3), batch_size=None, collate_fn=lambda i: self.batch(20_000 + i, whole_rows=True))


def small_relu(widths: Widths) -> ReLU:
    return ReLU(widths, d_sae=16)


@dataclass
class Run:
    folder: Path
    module: SAEModule
    data: Activations
    trainer: Trainer


@pytest.fixture
def small_run(tmp_path: Path) -> Callable[..., Run]:
    """Train a ReLU dictionary, or those of `entries`, for a few steps, with TensorBoard, in `tmp_path / folder`."""

    def train(
        *callbacks: Any,
        steps: int,
        names: tuple[str, ...] = (),
        entries: dict[str, Entry] | None = None,
        folder: str = "run",
        ckpt_path: Path | None = None,
        validate_every: int | None = None,
        batches: int | None = None,
        **options: Any,
    ) -> Run:
        seed_everything(0, verbose=False)
        entries = entries or {name: Entry(small_relu) for name in names}
        module = SAEModule(saes=entries, lr=0.01) if entries else SAEModule(small_relu, lr=0.01)
        data = Activations(steps * options.get("accumulate_grad_batches", 1), batches)
        defaults: dict[str, Any] = {
            "logger": TensorBoardLogger(tmp_path, name="", version=folder),
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
        }
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=list(callbacks),
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=any(hasattr(c, "best_model_path") for c in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=3 if validate_every else 0,
            val_check_interval=validate_every,
            check_val_every_n_epoch=None if validate_every else 1,
            **(defaults | options),
        )
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return Run(tmp_path / folder, module, data, trainer)

    return train
