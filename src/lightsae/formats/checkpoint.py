"""Training checkpoints as files: read without unpickling objects, and the SAEs that stand in them.

`RUN/checkpoints/last.ckpt` stands for the SAE of its run; of a run with several, `RUN/checkpoints/last.ckpt/NAME` for
one of them. Where weights were averaged (Lightning's WeightAveraging) the averaged ones are read, which are those that
the run exports in the end.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version

from lightsae.errors import CheckpointError, FormatError, did_you_mean, reading
from lightsae.formats.native import empty_sae, put_tensors
from lightsae.parsing import read_bytes
from lightsae.sae import SparseAutoencoder
from lightsae.stored import misfit

SUFFIX = ".ckpt"
# Before version 0.2 the container of the SAEs was called otherwise.
_CALLED_BEFORE, _CALLED = "dictionaries.", "saes."
# What a checkpoint says of an SAE beside its settings.
_SHAPE = ("variant", "d_in", "d_out", "read", "predicted")
_MOST_CONFIG = 4 << 20


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
        known = [p.name for p in path.parent.glob(f"*{SUFFIX}")]
        raise CheckpointError(f"The checkpoint {str(path)!r} does not exist.{did_you_mean(path.name, known)}")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load does not look at the check sums: a flipped bit would pass.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("packed members, which torch.save does not write, may unpack to any size")
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


def present_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of a checkpoint under the names that they have today."""
    return {
        _CALLED + key.removeprefix(_CALLED_BEFORE) if key.startswith(_CALLED_BEFORE) else key: value
        for key, value in weights.items()
    }


def checkpoint_and_name(path: str | Path) -> tuple[Path, str | None] | None:
    """Return the file and the SAE's name that a path stands for; None where it is no checkpoint's.

    >>> checkpoint_and_name("run/checkpoints/last.ckpt")
    (PosixPath('run/checkpoints/last.ckpt'), None)
    >>> checkpoint_and_name("run/sae")
    """
    path = Path(path)
    if path.suffix == SUFFIX and not path.is_dir():
        return path, None
    if path.parent.suffix == SUFFIX and path.parent.is_file():
        return path.parent, path.name
    return None


def read_sae_of_checkpoint(path: Path, name: str | None) -> tuple[dict[str, Any], SparseAutoencoder]:
    """Read one SAE of a checkpoint.

    Args:
        path: The file.
        name: Of a run with several, which; None: the only one.

    Returns:
        What an export of it would say (variant, settings, widths, dtype, provenance), and the SAE, in eval mode.

    Raises:
        FormatError: The checkpoint is missing, damaged or not lightsae's; or holds several SAEs, and none is named.
    """
    try:
        checkpoint = read_checkpoint(path, mmap=True)
    except CheckpointError as error:
        raise FormatError(error.args[0]) from error
    where = str(path)
    stored = checkpoint.get("lightsae")
    if stored is None:
        raise FormatError(f"{where!r} is a checkpoint that lightsae fit did not write; no SAE is known in it.")
    entries = _checked(stored, {"tokens_seen": 0, "dictionaries": {}}, where)["dictionaries"]
    name = _chosen(list(entries), name, where)
    described = _checked(
        entries[name], {"variant": "", "d_in": 0, "d_out": 0, "read": [], "predicted": []}, where, name
    )
    description = {
        "variant": described["variant"],
        "settings": {key: value for key, value in described.items() if key not in _SHAPE},
        "widths": _widths_entry(stored, described, name, where),
        "provenance": _provenance(checkpoint, path, name if len(entries) > 1 else None),
    }
    sae = empty_sae(description, where)
    prefix = f"{_CALLED}{name}."
    weights = checkpoint["state_dict"]
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        raise FormatError(f"{where!r}: state_dict does not hold named tensors; use an earlier checkpoint.")
    tensors = {
        key.removeprefix(prefix): value
        for key, value in present_names(weights).items()
        if key.startswith(prefix) and isinstance(value, torch.Tensor)
    }
    if sum(value.numel() * value.element_size() for value in tensors.values()) > path.stat().st_size:
        # A view can repeat a few numbers as often as it says.
        raise FormatError(f"{where!r}: the tensors are larger than the file; use an earlier checkpoint.")
    # Copies, for they still lie in the file.
    put_tensors(sae, {key: value.clone() for key, value in tensors.items()}, None, where)
    return {**description, "dtype": str(sae.W_dec.dtype).removeprefix("torch.")}, sae


def _chosen(names: list[str], name: str | None, where: str) -> str:
    if not names or (name is not None and name not in names):
        known = f"; it holds {', '.join(map(str, names))}" if names else ""
        raise FormatError(f"{where!r} holds no SAE{'' if name is None else f' {name!r}'}{known}.")
    if name is None and len(names) > 1:
        paths = ", ".join(repr(f"{where}/{one}") for one in names)
        raise FormatError(f"{where!r} is of a run with {len(names)} SAEs; name one of them: {paths}.")
    return name or names[0]


def _widths_entry(stored: Mapping[str, Any], described: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """Return sites and widths as sae.json has them; checkpoints of before 0.3 hold the sum of the widths alone."""
    if "widths" in stored:
        widths = _checked(stored["widths"], {name: {"read": None, "predicted": None}}, where)[name]
        return dict(widths)
    sides = {}
    for side, width in (("read", described["d_in"]), ("predicted", described["d_out"])):
        sites = described[side]
        if len(sites) != 1 or not isinstance(sites[0], str):
            raise FormatError(
                f"{where!r} was written by an earlier lightsae, which did not store the widths of several sites; open "
                "the run's export, RUN/sae."
            )
        model, _, site = sites[0].rpartition(":")
        sides[side] = [{"model": model, "site": site, "width": width}]
    return sides


def _provenance(checkpoint: Mapping[str, Any], path: Path, name: str | None) -> dict[str, Any]:
    """Return what an export of this moment would say; see `callbacks.export`."""
    stored = checkpoint["lightsae"]
    told, config = stored.get("data"), path.absolute().parent.parent / "config.yaml"
    with reading(FormatError, f"{str(config)!r} cannot be read"):
        text = read_bytes(config, _MOST_CONFIG).decode("utf-8") if config.is_file() else None
    return {
        **(told if isinstance(told, dict) else {}),
        "tokens_seen": stored["tokens_seen"],
        "step": checkpoint.get("global_step"),
        "config": text,
        **({} if name is None else {"dictionary": name}),
    }


def _checked(found: Any, expected: dict[str, Any], where: str, name: str = "") -> Mapping[str, Any]:
    empty = {key: None if isinstance(value, list) else value for key, value in expected.items()}
    lists = [key for key, value in expected.items() if isinstance(value, list)]
    problem = misfit(found, empty, f"lightsae.{name}".rstrip("."))
    problem = problem or next((f"{key} is no list" for key in lists if not isinstance(found[key], list)), None)
    if problem is not None:
        raise FormatError(f"{where!r} cannot be used: {problem}; use an earlier checkpoint.")
    return found  # type: ignore[no-any-return]


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
