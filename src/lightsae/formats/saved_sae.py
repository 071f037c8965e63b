"""An SAE that knows where it was saved: sae.json is read once, the tensors when they are first asked for.

What a person names for an SAE may be an export, a run's folder, a checkpoint, or files of another library.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lightsae.errors import FormatError, under
from lightsae.formats.checkpoint import checkpoint_and_name, read_sae_of_checkpoint
from lightsae.formats.files import find_folder
from lightsae.formats.hub import Fetched, fetch
from lightsae.formats.layouts import Opened, Source, layout_of
from lightsae.formats.named_sites import NamedSites
from lightsae.formats.native import (
    DESCRIPTION,
    build_sae,
    check_device,
    complete_settings,
    describe_sae,
    plain,
    tensor_hash,
    widths_entry,
    widths_of,
)
from lightsae.formats.recognised import sae_in_run
from lightsae.parsing import parse_yaml
from lightsae.sae import SparseAutoencoder

# What others read of the settings of `data:`.
_KINDS: dict[str, type] = {
    **dict.fromkeys(("model", "model_revision", "normalisation", "dtype", "chat_template"), str),
    **dict.fromkeys(("datasets", "roles"), list),
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
    def datasets(self) -> list[str]:
        """The text: the dataset, or those of a mixture; empty where none is told."""
        parts = [part for part in self.data.get("datasets") or [] if isinstance(part, Mapping)]
        names = [part.get("dataset") or part.get("name") for part in parts] or [self.data.get("dataset")]
        return [str(name) for name in names if name]

    @property
    def normalisation(self) -> str | None:
        """How activations were scaled: `sqrt_d`, `unit` or `none`."""
        return self.data.get("normalisation")

    @property
    def dtype(self) -> str | None:
        """What was asked for as the language model's dtype; what `auto` chose stands in `values`."""
        return self.data.get("dtype")

    @property
    def quantization(self) -> str | None:
        """What the weights of the language model were rounded to: `8bit`, `4bit`; None: they were not."""
        return self.data.get("quantization")

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
        is_export: Whether `folder` holds just this as sae.json and sae.safetensors.
        opened: What was read of the files of another library, before it became one of ours; None of our own.

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
        self.is_export = folder is not None
        self.opened: Opened | None = None

    @classmethod
    def open(cls, folder: str | Path, device: str | torch.device = "cpu") -> "SavedSAE":
        """Read the description of an exported SAE; or an SAE of a checkpoint or of another library.

        Args:
            folder: What `save_sae` or a run wrote; a run's folder; a checkpoint, RUN/checkpoints/last.ckpt, of a run
                with several SAEs with the name behind it: last.ckpt/NAME; or a file or folder of one of
                `lightsae.formats.layouts`; or, where nothing of that name is there, an address of the Hub,
                hf://OWNER/NAME@REVISION/PATH, or RELEASE/ID of `lightsae.formats.releases`.
            device: Where the tensors go; of our own exports, once they are asked for.

        Raises:
            FormatError: The folder or a file of it is missing or damaged, of no known layout, or was written by a newer
                version; or there are several SAEs.
            ConfigError: The device is not there.
        """
        if (fetched := fetch(folder)) is not None:
            return cls._of_hub(fetched, device)
        folder = sae_in_run(folder) or folder
        if (checkpoint := checkpoint_and_name(folder)) is not None:
            return cls._read(*read_sae_of_checkpoint(*checkpoint), folder, device)
        if is_foreign(folder):
            return cls.of_portable(layout_of(Path(folder)).read(Path(folder)), folder, device)
        return cls(describe_sae(folder), folder, device)

    @classmethod
    def _of_hub(cls, fetched: Fetched, device: str | torch.device) -> "SavedSAE":
        """Open what was fetched; its provenance says from where, with the commit."""
        if is_foreign(fetched.path):
            portable = layout_of(fetched.path).read(fetched.path)
            portable = replace(portable, source=fetched.complete(portable.source))
            return cls.of_portable(portable, fetched.path, device)
        description = describe_sae(fetched.path)
        told = {**description["provenance"], "address": fetched.address}
        return cls({**description, "provenance": told}, fetched.path, device)

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
        }
        saved = cls._read(description, sae, folder, device)
        saved.opened = portable
        return saved

    @classmethod
    def _read(
        cls,
        description: Mapping[str, Any],
        sae: SparseAutoencoder,
        folder: str | Path | None,
        device: str | torch.device,
    ) -> "SavedSAE":
        """Take an SAE that was read whole."""
        saved = cls({**description, "sha256": tensor_hash(sae)}, folder, device)
        saved.is_export = False
        saved.sae = sae.to(check_device(device))
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
    def unknown(self) -> list[str]:
        """What its file does not say of where it reads and predicts: `model`, `site`, `target_site`."""
        return self._sites.unknown

    @property
    def can_be_named(self) -> bool:
        """Whether `named` takes what is `unknown`: of several sites it takes the model alone."""
        return len(self.widths["read"]) == 1 or self.unknown == ["model"]

    @property
    def source(self) -> Source:
        """Where it comes from, in the terms of the layouts."""
        return self._sites.source(self.provenance.data)

    def named(self, model: str | None = None, site: str | None = None, target_site: str | None = None) -> "SavedSAE":
        """Return the SAE with the model and the sites that its file does not say.

        Args:
            model: Hub name, folder or `builtin`; an SAE that knows its model keeps that name.
            site: What it reads; see `lightsae.lm.sites`.
            target_site: What it predicts, of a transcoder.

        Raises:
            SiteError: It knows another site, or is of several.

        Example:
            saved = SavedSAE.open("sae.npz").named("builtin", "resid_post.2")
        """
        for key, asked in (("site", site), ("target_site", target_site)):
            self._sites.check(key, asked, str(self))
        names = {"model": model, "site": site, "target_site": target_site}
        chosen = {key: value for key, value in names.items() if value is not None and key in self.unknown}
        if not chosen:
            return self
        widths, told = self._sites.named(chosen), {**self.provenance.values, **chosen}
        description = {**self._description, "widths": widths, "provenance": told}
        saved = SavedSAE(description, self.folder, self._device)
        saved.is_export = False
        saved.opened = self.opened
        if "sae" in self.__dict__:
            saved.sae = copy.copy(self.sae)
            saved.sae.widths = widths_of(widths)
        return saved

    def named_like(self, entry: Mapping[str, Any]) -> "SavedSAE":
        """Return the SAE with the names that a manifest's `entry` of it has for what its file does not say."""
        names = NamedSites(entry.get("read") or [], entry.get("predicted") or [], {}).names
        return self.named(**{key: value for key, value in names.items() if key in self.unknown})

    @property
    def _sites(self) -> NamedSites:
        return NamedSites(self.widths["read"], self.widths["predicted"], self.provenance.values)

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


def load_sae(folder: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Read an SAE. It takes raw activations and gives raw activations back.

    Args:
        folder: What `save_sae` or a run wrote, a run's folder, a checkpoint, or files of another library; see
            `SavedSAE.open`.
        device: Where the tensors go.

    Returns:
        The SAE in eval mode; from an export, every bit as it was saved.

    Raises:
        FormatError: It is missing or damaged, or of a format or variant that this version does not know.
        ConfigError: `device` is not there.
    """
    return SavedSAE.open(folder, device).sae
