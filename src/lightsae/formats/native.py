"""lightsae's own export: a folder with `sae.safetensors` (the tensors) and `sae.json` (everything else).

The tensors' file holds weights and scale buffers alone: its bytes depend on nothing else, neither times nor paths.
`sae.json` says which variant it is, of which sites and widths, and where it came from, with the hash of the tensors and
that of its own settings: weights under other settings are another SAE. Nothing is ever unpickled.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from lightsae.errors import ConfigError, FormatError, did_you_mean
from lightsae.formats.checks import DTYPES, check_tensors, check_types
from lightsae.formats.files import (
    check_fields,
    check_version,
    entries,
    hash_file,
    locate,
    read_json,
    replace_folder_atomically,
)
from lightsae.formats.tensor_files import save_tensors
from lightsae.sae import MECHANISMS, VARIANTS, Mechanism, Refinements, SiteRef, SparseAutoencoder, Widths

FORMAT_VERSION = 1
TENSORS, DESCRIPTION = "sae.safetensors", "sae.json"
_AGAIN = "copy or export it again"


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
    for path in entries(folder, "to save the SAE in"):
        if path.name not in (TENSORS, DESCRIPTION):
            raise FormatError(
                f"{str(folder)!r} already holds other files ({path.name!r}); name a folder for the SAE alone."
            )
    with replace_folder_atomically(folder) as staged:
        write_sae(sae, staged, provenance)


def write_sae(sae: SparseAutoencoder, folder: Path, provenance: dict[str, Any] | None = None) -> None:
    """Write the two files into an existing folder, which the caller then puts in its place; see `save_sae`."""
    variant = next((name for name, kind in VARIANTS.items() if type(sae) is kind), None)
    if variant is None:
        raise FormatError(f"A {type(sae).__name__} has no native format; known variants: {', '.join(VARIANTS)}.")
    save_tensors(sae.state_dict(), folder / TENSORS)
    description = {
        "format_version": FORMAT_VERSION,
        "variant": variant,
        "settings": plain(sae.settings),
        "widths": widths_entry(sae.widths),
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "sha256": hash_file(folder / TENSORS),
    }
    description |= {"settings_sha256": settings_hash(description), "provenance": provenance or {}}
    text = json.dumps(description, indent=2, ensure_ascii=False, default=str)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def load_sae(folder: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Read an SAE that `save_sae` wrote, and nothing else; `lightsae.load_sae` opens other files, too.

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
    device = check_device(device)
    sae = empty_sae(description, str(Path(folder, DESCRIPTION)))
    path = locate(folder, DESCRIPTION) / TENSORS
    if not path.is_file():
        raise FormatError(f"{str(folder)!r} has no {TENSORS!r}; copy the whole exported folder again.")
    written = str(Path(folder, TENSORS))
    if (now := hash_file(path)) != description["sha256"]:
        raise FormatError(
            f"{written!r} is damaged or cut short: its SHA-256 starts with {now[:12]}, but {DESCRIPTION} says "
            f"{description['sha256'][:12]}; {_AGAIN}."
        )
    try:
        tensors = load_file(path, device=str(device))
    except SafetensorError as error:
        raise FormatError(f"{written!r} is not a safetensors file ({error}); export it again.") from error
    put_tensors(sae, tensors, description.get("dtype"), written)
    return sae


def check_device(device: str | torch.device) -> torch.device:
    """Return a device; raise a ConfigError where there is no CUDA device for it."""
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", str(device), "no CUDA device is available, so write 'cpu'")
    return device


def put_tensors(sae: SparseAutoencoder, tensors: dict[str, torch.Tensor], dtype: str | None, written: str) -> None:
    """Give tensors of a file to an SAE on the meta device.

    Args:
        sae: As `empty_sae` made it.
        tensors: By name.
        dtype: Of the trained ones, as the export says; None: it does not.
        written: The file as the user would write it.

    Raises:
        FormatError: One is missing, of another shape or dtype, or holds a NaN or an infinity.
    """
    sae.mechanism.upgrade(tensors, "mechanism.")
    _check_shapes(tensors, sae, written)
    check_tensors(tensors, dict(sae.named_parameters()), dtype, written)
    sae.load_state_dict(tensors, assign=True)
    left = [name for name, buffer in sae.named_buffers() if buffer.is_meta]
    assert not left, f"buffers {left} are neither saved nor rebuilt"


def describe_sae(folder: str | Path) -> dict[str, Any]:
    """Read what `sae.json` says of an export: variant, settings, widths, provenance ...; no tensors.

    Raises:
        FormatError: The folder or the file is missing or damaged, or was written by a newer version.
    """
    # Of its provenance, a figure may have been NaN.
    description = read_json(folder, DESCRIPTION, "Name a folder that save_sae or a run wrote.", _AGAIN, finite=False)
    written = str(Path(folder, DESCRIPTION))
    check_version(description, written, "format_version", FORMAT_VERSION, _AGAIN)
    fields = {"variant": str, "settings": dict, "widths": dict, "sha256": str, "provenance": dict}
    check_fields(description, written, fields, _AGAIN)
    if description.get("dtype", "float32") not in list(DTYPES):
        raise FormatError(f"{written!r}: dtype is {description['dtype']!r}; there are {', '.join(DTYPES)}. {_AGAIN}.")
    # Exports of before have no hash of the settings.
    said = description.get("settings_sha256")
    if said is not None and said != (now := settings_hash(description)):
        raise FormatError(
            f"{written!r} was changed: the SHA-256 of variant, settings, widths and dtype starts with {now[:12]}, but "
            f"it says {str(said)[:12]}; {_AGAIN}."
        )
    return description


def settings_hash(description: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a description says of the SAE itself: variant, settings, widths and dtype."""
    told = {name: description.get(name) for name in ("variant", "settings", "widths", "dtype")}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def complete_settings(description: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the settings of a description with the defaults of what it leaves out, for comparisons.

    Raises:
        FormatError: They do not make an SAE.
    """
    return plain(empty_sae(description, str(Path(where, DESCRIPTION))).settings)


def empty_sae(description: Mapping[str, Any], written: str) -> SparseAutoencoder:
    """Build an SAE of the described shape, in eval mode, on the meta device: no memory, and no random draw.

    Args:
        description: `variant`, `settings` and `widths`, as in sae.json.
        written: The file that says it, as the user would write it.

    Raises:
        FormatError: There is no such SAE.
    """
    variant = description["variant"]
    if variant not in VARIANTS:
        hint = did_you_mean(variant, VARIANTS) or " A newer lightsae may know it."
        raise FormatError(f"{written!r}: variant is {variant!r}; known are {', '.join(VARIANTS)}.{hint}")
    check_fields(description["widths"], written, {"read": list, "predicted": list}, _AGAIN)
    try:
        with torch.device("meta"):
            settings = _settings(description["settings"])
            check_types(settings, VARIANTS[variant])
            return VARIANTS[variant](widths_of(description["widths"]), **settings).eval()
    except (ConfigError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise FormatError(
            f"{written!r}: settings and widths do not make a {variant} ({reason}); export it again."
        ) from error


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Return an SAE's settings as JSON values."""

    def as_json(value: Any) -> Any:
        if isinstance(value, Mechanism):
            return {"name": type(value).__name__, **value.settings}
        return asdict(value) if isinstance(value, Refinements) else value

    return {name: as_json(value) for name, value in settings.items()}


def _settings(plain: dict[str, Any]) -> dict[str, Any]:
    """Undo `plain`."""
    settings = dict(plain)
    if isinstance(mechanism := settings.get("mechanism"), dict):
        arguments = dict(mechanism)
        kind = MECHANISMS[arguments.pop("name")]
        check_types(arguments, kind)
        settings["mechanism"] = kind(**arguments)
    if isinstance(refinements := settings.get("refinements"), dict):
        check_types(refinements, Refinements)
        settings["refinements"] = Refinements(**refinements)
    return settings


def _check_shapes(tensors: dict[str, torch.Tensor], sae: SparseAutoencoder, shown: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    if lacking := sorted(expected.keys() - tensors.keys()):
        if lacking[0].endswith("threshold"):
            raise FormatError(
                f"{shown!r} lacks {lacking[0]!r}, without which a {type(sae).__name__} would fire on everything; "
                "export it again from its training checkpoint."
            )
        raise FormatError(f"{shown!r} lacks the tensor {lacking[0]!r}; export it again.")
    if surplus := sorted(tensors.keys() - expected.keys()):
        raise FormatError(f"{shown!r} holds a tensor {surplus[0]!r} that a {type(sae).__name__} does not have.")
    for name, shape in expected.items():
        if (actual := tuple(tensors[name].shape)) != shape:
            raise FormatError(
                f"{shown!r}: {name} has shape {actual}, but {DESCRIPTION} asks for {shape}; export it again."
            )


def widths_entry(widths: Widths) -> dict[str, Any]:
    """Return sites and widths as JSON values."""
    return {
        side: [{"model": ref.model, "site": ref.site, "width": width} for ref, width in sites.items()]
        for side, sites in (("read", widths.read), ("predicted", widths.predicted))
    }


def widths_of(entry: Mapping[str, Any]) -> Widths:
    """Undo `widths_entry`."""
    kinds = {"model": str, "site": str, "width": int}
    for one in (*entry["read"], *entry["predicted"]):
        if not all(type(one[key]) is kind for key, kind in kinds.items()) or not 0 < one["width"] < 2**31:
            raise TypeError(f"{one} is no site")
    sides = [{SiteRef(e["model"], e["site"]): e["width"] for e in entry[side]} for side in ("read", "predicted")]
    if not all(map(len, sides)) or [*map(len, sides)] != [len(entry[side]) for side in ("read", "predicted")]:
        raise TypeError("a site is missing, or stands there twice")
    return Widths(*sides)


def tensor_hash(sae: SparseAutoencoder) -> str:
    """Return the SHA-256 that the tensors' file of an export of `sae` has."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    return hashlib.sha256(save(tensors)).hexdigest()
