"""How a run ends: last.ckpt, always whole and always the end of an optimiser step; and one validation more."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightsae.callbacks.base import run_folder
from lightsae.compat import save_now, validate_after_this_batch
from lightsae.sae.ranks import is_distributed, over_all


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM reached a training run; its checkpoint is saved.

    Attributes:
        signal_number: Which of the two.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class RunCheckpoint(ModelCheckpoint):
    """Save last.ckpt every `every_n_train_steps`, at the end of training, and when Ctrl-C or SIGTERM asks to stop.

    A signal only sets a flag: the batch in progress ends first, so that no half-finished step is kept, and all
    processes of a run stop after the same step, whichever of them was told. A second Ctrl-C stops at once. Observes
    only: it changes no weights.

    Args:
        every_n_train_steps: Optimiser steps between saves.
    """

    def __init__(self, every_n_train_steps: int = 1000) -> None:
        # One file that each save replaces: the file is staged and renamed, so that there is always a whole one.
        super().__init__(
            filename="last",
            save_top_k=1,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )
        self._asked_to_stop = 0
        self._step_before = 0
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Beside the run's other files, whatever logs; Lightning would take the logger's project and number.
        folder = run_folder(trainer).absolute() / "checkpoints"
        self.dirpath = self.dirpath or str(folder)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._asked_to_stop = 0
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._note)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step_before:
            # In the middle of a step, whose gradients no checkpoint holds. Lightning would save here: the number of
            # the step is still that of the checkpoint from which the run was resumed.
            return
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if number := self._asked_of_any(trainer):
            save_now(self, trainer)
            raise Interrupted(number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        save_now(self, trainer)
        super().on_train_end(trainer, pl_module)
        self._put_handlers_back()
        if number := self._asked_of_any(trainer):
            # It came during the last validation.
            raise Interrupted(number)

    def _asked_of_any(self, trainer: Trainer) -> int:
        """Return the signal that this process or another one was sent, or 0; the same on all, at the end of a step.

        Saving takes all of them: one that stopped alone would wait for the others for ever.
        """
        if not is_distributed():
            return self._asked_to_stop
        asked = torch.tensor(self._asked_to_stop, device=trainer.strategy.root_device)
        return int(over_all(asked, "max"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._put_handlers_back()

    def _put_handlers_back(self) -> None:
        # Here and not in `teardown`, which comes after Lightning has taken its own handlers away again.
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked_to_stop:
            raise KeyboardInterrupt
        self._asked_to_stop = number


class FinalValidation(Callback):
    """Validate after the last step, wherever `val_check_interval` falls. Observes only."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= getattr(pl_module, "total_steps", trainer.max_steps) > 0:
            validate_after_this_batch(trainer)
