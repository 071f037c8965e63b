"""Training checkpoints: written whole or not at all, read without unpickling objects, held against the run's SAEs."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightsae.activations.stream import Timings
from lightsae.errors import CheckpointError, did_you_mean
from lightsae.formats.files import write_atomically
from lightsae.formats.native import plain
from lightsae.sae import SparseAutoencoder


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
        path = Path(path)
        if not path.is_file():
            known = [p.name for p in path.parent.glob("*.ckpt")]
            raise CheckpointError(f"The checkpoint {str(path)!r} does not exist.{did_you_mean(path.name, known)}")
        try:
            with zipfile.ZipFile(path) as archive:
                # torch.load does not look at the check sums: a flipped bit would pass.
                broken = archive.testzip()
            checkpoint = torch.load(path, map_location=map_location, weights_only=True) if broken is None else None
        except Exception as error:
            raise CheckpointError(f"The checkpoint {str(path)!r} {_reason(error)}; use an earlier one.") from error
        if broken is not None:
            raise CheckpointError(f"The checkpoint {str(path)!r} is damaged (at {broken!r}); use an earlier one.")
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise CheckpointError(
                f"{str(path)!r} is not a training checkpoint; give a file from a run's checkpoints folder."
            )
        return checkpoint


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "cannot be read: no permission"
    if "Unsupported" in str(error) and "global" in str(error).lower():
        return "holds Python objects, which are never unpickled here; lightsae writes tensors and numbers only"
    return "is damaged or cut short"


def check_checkpoint(
    checkpoint: Mapping[str, Any], saes: Mapping[str, SparseAutoencoder], name: str = "the checkpoint"
) -> None:
    """Raise a CheckpointError where a checkpoint is not lightsae's, or holds other SAEs than these."""
    stored = checkpoint.get("lightsae")
    if stored is None:
        raise CheckpointError(f"--ckpt_path: {name} was not written by lightsae fit.")
    configured = {key: describe(sae) for key, sae in saes.items()}
    if difference := first_difference(stored["dictionaries"], configured):
        raise CheckpointError(f"--ckpt_path: {name} does not fit the configuration: {difference}.")


def describe(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return what has to agree between a checkpoint and a configuration, as plain values."""
    return {
        "variant": type(sae).__name__,
        "d_in": sae.d_in,
        "d_out": sae.d_out,
        **plain(sae.settings),
        "read": [str(site) for site in sae.widths.read],
        "predicted": [str(site) for site in sae.widths.predicted],
    }


def first_difference(stored: Mapping[str, Any], configured: Mapping[str, Any], where: str = "") -> str | None:
    """Return the first disagreement of two nested descriptions in words, or None."""
    for key in {**stored, **configured}:
        a, b = stored.get(key), configured.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := first_difference(a, b, f"{where}{key}."):
                return inner
        elif a != b:
            return f"{where}{key} is {a!r} in the checkpoint and {b!r} in the configuration"
    return None
