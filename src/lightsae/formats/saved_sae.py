"""An SAE that knows where it was saved: sae.json is read once, the tensors when they are first asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lightsae.errors import FormatError, under
from lightsae.formats.files import find_folder
from lightsae.formats.layouts import Opened, layout_of
from lightsae.formats.native import (
    DESCRIPTION,
    build_sae,
    complete_settings,
    describe_sae,
    plain,
    tensor_hash,
    widths_entry,
)
from lightsae.parsing import parse_yaml
from lightsae.sae import SparseAutoencoder

# What others read of the settings of `data:`.
_KINDS: dict[str, type] = {
    **dict.fromkeys(("model", "model_revision", "normalisation", "dtype"), str),
    "skip_special_tokens": bool,
    "skip_positions": int,
}


@dataclass(frozen=True)
class Provenance:
    """How an SAE was trained, as far as its export tells.

    Attributes:
        data: The settings of `data:` by name, with the model's resolved revision.
        values: Everything that the export says, as it stands in sae.json.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str | None:
        """The language model that was read: Hub name, folder or `builtin`."""
        return self.data.get("model")

    @property
    def revision(self) -> str | None:
        """The revision of that model."""
        return self.data.get("model_revision")

    @property
    def normalisation(self) -> str | None:
        """How activations were scaled: `sqrt_d`, `unit` or `none`."""
        return self.data.get("normalisation")

    @property
    def dtype(self) -> str | None:
        """What was asked for as the language model's dtype; what `auto` chose stands in `values`."""
        return self.data.get("dtype")

    @property
    def skip_special_tokens(self) -> bool:
        """Whether special tokens were left out of training."""
        return bool(self.data.get("skip_special_tokens", False))

    @property
    def skip_positions(self) -> int:
        """How many first positions of a row were left out of training."""
        return int(self.data.get("skip_positions", 0))

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> "Provenance":
        """Read what `sae.json` holds under `provenance`.

        Raises:
            FormatError: The configuration in it is not YAML.
        """
        config = values.get("config")
        try:
            loaded = parse_yaml(config) if isinstance(config, str) else None
        except ValueError as error:
            raise FormatError(f"{where!r}: the configuration in sae.json: {error}; export it again.") from error
        data = loaded.get("data") if isinstance(loaded, dict) else None
        data = data if isinstance(data, dict) else {}
        # On another machine `auto` may choose otherwise.
        told = {name: value for name, value in values.items() if name not in ("config", "dtype")}
        resolved = {name: value for name, value in told.items() if value is not None}
        data = {**data, **resolved}
        for name, kind in _KINDS.items():
            if not isinstance(data.get(name), kind | None) or (name == "skip_positions" and data.get(name, 0) < 0):
                raise FormatError(f"{where!r}: sae.json says that {name} was {data[name]!r:.60}; export it again.")
        return cls(data, values)


def is_foreign(path: str | Path) -> bool:
    """Return whether a path that exists is not one of our exports: a file, or a folder without sae.json."""
    there = find_folder(path)
    if there is None:
        return Path(path).is_file()
    # One that was meant to be ours gets the message for ours.
    return not (there / DESCRIPTION).is_file() and not any(there.glob(f"*/{DESCRIPTION}"))


class SavedSAE:
    """An SAE with what its export says of it.

    Attributes:
        folder: Where it was saved, as the user wrote it; None for one that was never saved.
        variant: Name of the variant.
        sha256: Hash of the tensors' file.
        settings: The variant's settings, JSON values.
        widths: `read` and `predicted`, each a list of {model, site, width}.
        provenance: How it was trained.

    Example:
        saved = SavedSAE.open("lightning_logs/version_0/sae")
        saved.provenance.model, saved.sha256, saved.sae.encode(x)
    """

    def __init__(
        self, description: Mapping[str, Any], folder: str | Path | None, device: str | torch.device = "cpu"
    ) -> None:
        self.folder, self._device, self._description = folder, device, description
        self.variant: str = description["variant"]
        self.settings: dict[str, Any] = description["settings"]
        self.widths: dict[str, list[dict[str, Any]]] = description["widths"]
        self.provenance = Provenance.of(description["provenance"], str(folder))

    @classmethod
    def open(cls, folder: str | Path, device: str | torch.device = "cpu") -> "SavedSAE":
        """Read the description of an exported SAE, or an SAE of another library.

        Args:
            folder: What `save_sae` or a run wrote; or a file or folder of one of `lightsae.formats.layouts`.
            device: Where the tensors go; of our own exports, once they are asked for.

        Raises:
            FormatError: The folder or a file of it is missing or damaged, of no known layout, or was written by a newer
                version.
        """
        if is_foreign(folder):
            return cls.of_portable(layout_of(Path(folder)).read(Path(folder)), folder, device)
        return cls(describe_sae(folder), folder, device)

    @classmethod
    def of_portable(cls, portable: Opened, folder: str | Path | None, device: str | torch.device = "cpu") -> "SavedSAE":
        """Take an SAE that was read from a layout of others."""
        sae = portable.to_sae()
        description = {
            "variant": type(sae).__name__,
            "settings": plain(sae.settings),
            "widths": widths_entry(sae.widths),
            "dtype": "float32",
            "provenance": portable.source.provenance(portable.folded),
            "sha256": tensor_hash(sae),
        }
        saved = cls(description, folder, device)
        saved.sae = sae.to(device)
        return saved

    @classmethod
    def of(cls, sae: "SavedSAE | SparseAutoencoder | str | Path", device: str | torch.device = "cpu") -> "SavedSAE":
        """Take an SAE in any of the forms in which a person has one: in memory, or by its folder."""
        if isinstance(sae, SavedSAE):
            return sae
        if not isinstance(sae, SparseAutoencoder):
            with under(folder="sae"):
                return cls.open(sae, device)
        description = {"variant": type(sae).__name__, "settings": plain(sae.settings), "provenance": {}}
        saved = cls({**description, "widths": widths_entry(sae.widths)}, None)
        saved.sae = sae
        return saved

    @cached_property
    def sae(self) -> SparseAutoencoder:
        """The SAE in eval mode, every bit as it was saved.

        Raises:
            FormatError: The tensors are missing or damaged, or do not fit the description.
            ConfigError: The device is not there.
        """
        assert self.folder is not None
        return build_sae(self._description, self.folder, self._device)

    @cached_property
    def sha256(self) -> str:
        return self._description.get("sha256") or tensor_hash(self.sae)

    @property
    def entry(self) -> dict[str, Any]:
        """What a manifest says of it; nothing of it depends on where the folder lies."""
        told = {"variant": self.variant, "sha256": self.sha256, "d_sae": self.settings.get("d_sae")}
        return {**told, "settings": self.settings, **self.widths}

    def first_other_setting(self, entry: Mapping[str, Any]) -> str | None:
        """Return in words the first setting in which another SAE's `entry` differs; None if none does.

        Manifests of before say no settings: then those of the tensors alone tell SAEs apart.

        Raises:
            FormatError: The settings of one of them make no SAE.
        """
        if not isinstance(entry.get("settings"), dict):
            return None
        description = {"variant": self.variant, "settings": self.settings, "widths": self.widths}
        theirs = {**description, **{key: entry[key] for key in ("variant", "settings") if key in entry}}
        if theirs["variant"] != self.variant:
            return f"variant {self.variant} and not {theirs['variant']}"
        ours, others = complete_settings(description, str(self)), complete_settings(theirs, "the manifest")
        changed = next((key for key in ours if ours[key] != others[key]), None)
        return None if changed is None else f"{changed} {ours[changed]!r:.60} and not {others[changed]!r:.60}"

    def __str__(self) -> str:
        return str(self.folder) if self.folder is not None else self.variant
