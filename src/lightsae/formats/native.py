"""lightsae's own export: a folder with `sae.safetensors` (the tensors) and `sae.json` (everything else).

The tensors' file holds weights and scale buffers alone: its bytes depend on nothing else, neither times nor paths.
`sae.json` says which variant it is, of which sites and widths, and where it came from, with the hash of the tensors.
Nothing is ever unpickled.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file

from lightsae.errors import ConfigError, FormatError, did_you_mean
from lightsae.formats.files import hash_file, locate, replace_folder_atomically
from lightsae.sae import MECHANISMS, VARIANTS, Mechanism, Refinements, SiteRef, SparseAutoencoder, Widths

FORMAT_VERSION = 1
TENSORS, DESCRIPTION = "sae.safetensors", "sae.json"


def save_sae(sae: SparseAutoencoder, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
    """Write an SAE to a folder; the folder is made, or replaced where it holds an earlier export.

    A kill at any moment leaves the earlier export or the new one.

    Args:
        sae: An SAE of one of the variants in `lightsae.sae.VARIANTS`.
        folder: A folder of the SAE's own.
        provenance: Where the SAE comes from; JSON values, or what has a readable `str`.

    Raises:
        FormatError: The folder holds files of something else.
        ConfigError: The disk is full, or there is no permission to write.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise FormatError(f"{str(folder)!r} is a file; name a folder to save the SAE in.")
    others = sorted(p.name for p in path.iterdir() if p.name not in (TENSORS, DESCRIPTION)) if path.exists() else []
    if others:
        raise FormatError(
            f"{str(folder)!r} already holds other files ({others[0]!r}); name a folder for the SAE alone."
        )
    with replace_folder_atomically(folder) as staged:
        write_sae(sae, staged, provenance)


def write_sae(sae: SparseAutoencoder, folder: Path, provenance: dict[str, Any] | None = None) -> None:
    """Write the two files into an existing folder, which the caller then puts in its place; see `save_sae`."""
    variant = next((name for name, kind in VARIANTS.items() if type(sae) is kind), None)
    if variant is None:
        raise FormatError(f"A {type(sae).__name__} has no native format; known variants: {', '.join(VARIANTS)}.")
    tensors = {name: tensor.detach().contiguous() for name, tensor in sae.state_dict().items()}
    save_file(tensors, folder / TENSORS)
    description = {
        "format_version": FORMAT_VERSION,
        "variant": variant,
        "settings": plain(sae.settings),
        "widths": widths_entry(sae.widths),
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "sha256": hash_file(folder / TENSORS),
        "provenance": provenance or {},
    }
    text = json.dumps(description, indent=2, ensure_ascii=False, default=str)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def load_sae(folder: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Read an SAE that `save_sae` wrote. It takes raw activations and gives raw activations back.

    Args:
        folder: As in `save_sae`.
        device: Where the tensors go.

    Returns:
        The SAE, every bit as it was saved.

    Raises:
        FormatError: The folder is missing or damaged, or of a format or variant that this version does not know.
        ConfigError: `device` is not there.
    """
    return build_sae(describe_sae(folder), folder, device)


def build_sae(description: Mapping[str, Any], folder: str | Path, device: str | torch.device) -> SparseAutoencoder:
    """Make the SAE that `describe_sae` described, with its tensors; see `load_sae`."""
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", str(device), "no CUDA device is available, so write 'cpu'")
    sae = _empty_sae(description, folder)
    path = locate(folder, DESCRIPTION) / TENSORS
    if not path.is_file():
        raise FormatError(f"{str(folder)!r} has no {TENSORS!r}; copy the whole exported folder again.")
    if (found := hash_file(path)) != description["sha256"]:
        raise FormatError(
            f"{str(Path(folder, TENSORS))!r} is damaged or cut short: its SHA-256 starts with {found[:12]}, but "
            f"{DESCRIPTION} says {description['sha256'][:12]}. Copy or export it again."
        )
    try:
        tensors = load_file(path, device=str(device))
    except SafetensorError as error:
        raise FormatError(
            f"{str(Path(folder, TENSORS))!r} is not a safetensors file ({error}); export it again."
        ) from error
    _check_shapes(tensors, sae, Path(folder, TENSORS))
    sae.load_state_dict(tensors, assign=True)
    left = [name for name, buffer in sae.named_buffers() if buffer.is_meta]
    assert not left, f"buffers {left} are neither saved nor rebuilt"
    return sae


def describe_sae(folder: str | Path) -> dict[str, Any]:
    """Read what `sae.json` says of an export: variant, settings, widths, provenance ...; no tensors.

    Raises:
        FormatError: The folder or the file is missing or damaged, or was written by a newer version.
    """
    path = locate(folder, DESCRIPTION) / DESCRIPTION
    shown = str(Path(folder, DESCRIPTION))
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{str(folder)!r} has no {DESCRIPTION!r}.{_exports_below(folder)}") from error
    except ValueError as error:
        raise FormatError(f"{shown!r} is not valid JSON ({error}); copy or export it again.") from error
    if not isinstance(description, dict):
        raise FormatError(
            f"{shown!r} holds a {type(description).__name__}, not an export's description; export it again."
        )
    version = _field(description, "format_version", int, shown)
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{shown!r} has format version {version}, and this lightsae reads up to {FORMAT_VERSION}: "
            "pip install --upgrade lightsae"
        )
    for name, kind in {"variant": str, "settings": dict, "widths": dict, "sha256": str, "provenance": dict}.items():
        _field(description, name, kind, shown)
    return description


def _empty_sae(description: Mapping[str, Any], folder: str | Path) -> SparseAutoencoder:
    """Build an SAE of the described shape on the meta device: no memory, and no random draw."""
    shown, variant = str(Path(folder, DESCRIPTION)), description["variant"]
    if variant not in VARIANTS:
        hint = did_you_mean(variant, VARIANTS) or " A newer lightsae may know it."
        raise FormatError(f"{shown!r}: variant is {variant!r}; known are {', '.join(VARIANTS)}.{hint}")
    read, predicted = (_field(description["widths"], key, list, shown) for key in ("read", "predicted"))
    try:
        with torch.device("meta"):
            widths = Widths(_from_list(read), _from_list(predicted))
            sae = VARIANTS[variant](widths, **_settings(description["settings"]))
            return sae.eval()
    except (ConfigError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise FormatError(
            f"{shown!r}: settings and widths do not make a {variant} ({reason}); export it again."
        ) from error


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Return an SAE's settings as JSON values."""
    told = {}
    for name, value in settings.items():
        if isinstance(value, Mechanism):
            value = {"name": type(value).__name__, **value.settings}
        told[name] = asdict(value) if isinstance(value, Refinements) else value
    return told


def _settings(told: dict[str, Any]) -> dict[str, Any]:
    """Undo `plain`."""
    settings = dict(told)
    if isinstance(mechanism := settings.get("mechanism"), dict):
        settings["mechanism"] = MECHANISMS[mechanism["name"]](**{k: v for k, v in mechanism.items() if k != "name"})
    if isinstance(refinements := settings.get("refinements"), dict):
        settings["refinements"] = Refinements(**refinements)
    return settings


def _check_shapes(tensors: dict[str, torch.Tensor], sae: SparseAutoencoder, path: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    if lacking := sorted(expected.keys() - tensors.keys()):
        if lacking[0].endswith("threshold"):
            raise FormatError(
                f"{str(path)!r} lacks {lacking[0]!r}, without which a {type(sae).__name__} would fire on everything; "
                "export it again from its training checkpoint."
            )
        raise FormatError(f"{str(path)!r} lacks the tensor {lacking[0]!r}; export it again.")
    if surplus := sorted(tensors.keys() - expected.keys()):
        raise FormatError(f"{str(path)!r} holds a tensor {surplus[0]!r} that a {type(sae).__name__} does not have.")
    for name, shape in expected.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise FormatError(
                f"{str(path)!r}: {name} has shape {found}, but {DESCRIPTION} asks for {shape}; export it again."
            )


def _exports_below(folder: str | Path) -> str:
    """Name an export inside the folder, as where somebody gives the run's folder."""
    path = Path(folder)
    below = sorted(p.parent for pattern in ("*", "*/*") for p in path.glob(f"{pattern}/{DESCRIPTION}"))
    return f" Did you mean {str(below[0])!r}?" if below else " Name a folder that save_sae or a run wrote."


def _field(holder: Mapping[str, Any], name: str, kind: type, shown: str) -> Any:
    value = holder.get(name)
    if not isinstance(value, kind):
        found = "is missing" if value is None else f"is {value!r}"
        raise FormatError(f"{shown!r}: {name!r} {found}, where a {kind.__name__} should be; export it again.")
    return value


def widths_entry(widths: Widths) -> dict[str, Any]:
    """Return sites and widths as JSON values."""
    return {"read": _to_list(widths.read), "predicted": _to_list(widths.predicted)}


def _to_list(widths: dict[SiteRef, int]) -> list[dict[str, Any]]:
    return [{"model": ref.model, "site": ref.site, "width": width} for ref, width in widths.items()]


def _from_list(widths: list[dict[str, Any]]) -> dict[SiteRef, int]:
    return {SiteRef(entry["model"], entry["site"]): entry["width"] for entry in widths}


def tensor_hash(sae: SparseAutoencoder) -> str:
    """Return the SHA-256 that the tensors' file of an export of `sae` has."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    return hashlib.sha256(save(tensors)).hexdigest()
