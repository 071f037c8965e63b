"""Training checkpoints: written whole or not at all, read without unpickling objects, held against the run's SAEs."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from packaging.version import InvalidVersion, Version

from lightsae.activations.stream import Timings
from lightsae.errors import CheckpointError, did_you_mean
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


def read_checkpoint(path: str | Path, map_location: Any = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint without unpickling objects.

    Args:
        path: The file.
        map_location: Where its tensors go.
        mmap: Leave the tensors on the disk until they are looked at; the file must not change meanwhile.

    Raises:
        CheckpointError: It is missing, damaged, or not a training checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        known = [p.name for p in path.parent.glob("*.ckpt")]
        raise CheckpointError(f"The checkpoint {str(path)!r} does not exist.{did_you_mean(path.name, known)}")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load does not look at the check sums: a flipped bit would pass.
            broken = archive.testzip()
        checkpoint = None
        if broken is None:
            checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:
        raise CheckpointError(f"The checkpoint {str(path)!r} {_reason(error)}; use an earlier one.") from error
    if broken is not None:
        raise CheckpointError(f"The checkpoint {str(path)!r} is damaged (at {broken!r}); use an earlier one.")
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or not _is_recent(checkpoint):
        raise CheckpointError(
            f"{str(path)!r} is not a training checkpoint; give a file from a run's checkpoints folder."
        )
    return checkpoint


def _is_recent(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of a Lightning that lightsae ever used; older ones are read in another way."""
    try:
        return Version(checkpoint["pytorch-lightning_version"]) >= Version("2.0")
    except (KeyError, TypeError, InvalidVersion):
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "cannot be read: no permission"
    if "Unsupported" in str(error) and "global" in str(error).lower():
        return "holds Python objects, which are never unpickled here; lightsae writes tensors and numbers only"
    return "is damaged or cut short"
