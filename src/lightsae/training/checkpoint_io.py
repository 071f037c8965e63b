"""Training checkpoints: written whole or not at all, read without unpickling objects."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightsae.activations.timings import Timings
from lightsae.formats.checkpoint import read_checkpoint
from lightsae.formats.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves beside the target and renames; loads tensors, numbers, strings, lists and dicts only.

    Lightning's own stages checkpoints in the system's temporary folder and moves them, which is not atomic across file
    systems. Use it as a plugin: `Trainer(plugins=[AtomicCheckpointIO()])`.

    Attributes:
        timings: Seconds spent saving, under "saving".
    """

    def __init__(self) -> None:
        super().__init__()
        self.timings = Timings()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; if that fails, `path` keeps what it held.

        Raises:
            ConfigError: The disk is full, or there is no permission to write.
        """
        assert storage_options is None, "checkpoints are plain files"
        with self.timings.measure("saving"), write_atomically(path) as temporary, temporary.open("wb") as file:
            # Through a Python file: torch's own writer does not say why it failed.
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint. Always with `weights_only=True`, whatever is asked.

        Raises:
            CheckpointError: It is missing, damaged, or not a training checkpoint.
        """
        return read_checkpoint(path, map_location)
