"""A callback for test_resume: ends its process with SIGKILL, as a machine that fails does."""

import os
import signal

from lightning.pytorch import Callback


class KillAt(Callback):
    """SIGKILL at the start of the optimiser step given by the environment variable KILL_AT_STEP."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if os.environ.get("KILL_AT_STEP") == str(trainer.global_step):
            os.kill(os.getpid(), signal.SIGKILL)
