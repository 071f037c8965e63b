"""One validation more, at the end of training."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class FinalValidation(Callback):
    """Validate after the last step, wherever `val_check_interval` falls. Observes only."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        total = getattr(pl_module, "total_steps", trainer.max_steps)
        if trainer.global_step >= total > 0:
            # Lightning asks right after this hook whether the batch number is a multiple of this interval.
            trainer.val_check_batch = 1
