"""Validation after the last step, once, wherever the interval falls."""

from collections.abc import Callable
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks import FinalValidation
from lightsae.sae import TopK
from lightsae.training.module import SAEModule


class Note(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_steps": 12, "val_check_interval": 5}, [5, 10, 12]),
        ({"max_steps": 12, "val_check_interval": 6}, [6, 12]),
        ({"max_steps": 12, "val_check_interval": 100}, [12]),
        ({"max_steps": 6, "val_check_interval": 4, "accumulate_grad_batches": 2}, [2, 4, 6]),
        ({"max_steps": 6, "val_check_interval": 8, "accumulate_grad_batches": 2}, [4, 6]),
        ({"max_epochs": 2, "check_val_every_n_epoch": 1}, [7, 14]),
    ],
)
def test_when(
    activation_file: Callable[..., str], quiet: dict[str, Any], options: dict[str, Any], expected: list[int]
) -> None:
    note = Note()
    defaults = {"limit_val_batches": 1.0, "check_val_every_n_epoch": None, "callbacks": [FinalValidation(), note]}
    data = ActivationDataModule(activations=activation_file(500), batch_tokens=64)
    Trainer(**(quiet | defaults | options)).fit(SAEModule(lambda widths: TopK(widths, d_sae=16, k=2)), data)
    assert note.steps == expected
