"""A callback that sends its own process a signal after a step, as a scheduler, a person or the kernel would."""

import os
import signal
from typing import Any

from lightning import Callback, LightningModule, Trainer


class SignalAt(Callback):
    """SIGNAL_AT is `STEP RANK NAME`: `15 1 SIGTERM`; without it, nothing happens."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        step, rank, name = os.environ.get("SIGNAL_AT", "0 0 SIGTERM").split()
        if (trainer.global_step, trainer.global_rank) == (int(step), int(rank)):
            os.kill(os.getpid(), signal.Signals[name])
