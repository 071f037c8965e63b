"""Reads a registry: what a channel has, for its own language model alone, and whether all is as it was published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.reading.compatibility import check_model, choose_site
from lightsae.errors import ConfigError, FormatError, arg
from lightsae.formats.native import load_sae
from lightsae.lm.model import site_in
from lightsae.production.registry.hub_repository import local_copy
from lightsae.production.registry.log import LOG, inspect_log
from lightsae.production.registry.store import check_channel, locate_registry, open_registry, unpublished
from lightsae.production.registry.version import SHORT, check_intact, folder_of, problems_of
from lightsae.sae import SiteRef, SparseAutoencoder


@dataclass(frozen=True)
class Promoted:
    """What a channel has; `steer` and `monitor` take it as the SAE, with its feature dictionary.

    Attributes:
        sae: In eval mode.
        dictionary: Its feature dictionary.
        version: Id of the version.
        channel: Where it was promoted to.
        site: Where the SAE writes.
        model: Name of the language model it belongs to.
        revision: Revision of that model; None: any.
        folder: Of the version; the SAE's is `folder / "sae"`.
    """

    sae: SparseAutoencoder
    dictionary: FeatureDictionary
    version: str
    channel: str
    site: SiteRef
    model: str
    revision: str | None
    folder: Path


def load_channel(
    registry: str | Path,
    channel: str,
    model: Any = None,
    *,
    site: str | None = None,
    device: str | torch.device = "cpu",
) -> Promoted:
    """Load the version that a channel has.

    Compared are: the channel with the log, version.json with the version's id, every file with version.json, the
    tensors with sae.json, the feature dictionary with its SAE, and both with the model.

    Args:
        registry: Folder of a registry, or `hub:org/name`.
        channel: `staging` or `production`.
        model: The LanguageModel or transformers model that it is for; None: not compared.
        site: Where it is to write; has to be named if the SAE predicts several.
        device: Where the SAE goes.

    Raises:
        ConfigError: There is no such channel, or nothing was promoted to it.
        FormatError: Anything is not what was promoted; says what.
        ModelError: The model is another one.
        SiteError: The site is another one.
    """
    check_channel(channel)
    where, state = open_registry(registry, channel=channel)
    version = state.has(channel)
    if version is None:
        raise ConfigError(
            f"{arg('channel')} is {channel!r}, and nothing in {str(registry)!r} was promoted to it: lightsae registry "
            f"promote VERSION --channel {channel} --registry {registry}"
        )
    manifest = check_intact(where, version, str(registry))
    folder = folder_of(where, version)
    dictionary = FeatureDictionary.open(folder / "dictionary")
    if dictionary.id != manifest["dictionary"]:
        raise FormatError(
            f"Version {version[:SHORT]} is of the feature dictionary {manifest['dictionary'][:SHORT]}, but holds "
            f"{dictionary.id[:SHORT]}; publish it again."
        )
    sae = load_sae(folder / "sae", device)
    dictionary.check_belongs_to(folder / "sae")
    name, revision = str(dictionary.manifest["model"].get("name") or ""), dictionary.manifest["model"].get("revision")
    written = choose_site(sae, site)
    if model is not None:
        check_model(model, name, revision)
        site_in(model, written.site)
    return Promoted(sae, dictionary, version, channel, written, name, revision, folder)


@dataclass(frozen=True)
class Verified:
    """What `verify` found.

    Attributes:
        versions: How many are published.
        entries: How many actions the log holds.
        problems: What is wrong, a line each.
        notes: What an action that was cut short left; the next one clears it away.
    """

    versions: int
    entries: int
    problems: list[str]
    notes: list[str]


def verify(registry: str | Path) -> Verified:
    """Rehash all files of all versions that the log names, and check that log and channels agree.

    What is not found: an edited line of the log that still follows from those before it (see `registry.log`).

    Args:
        registry: Folder of the registry, or `hub:org/name`.

    Raises:
        FormatError: There is no registry.
    """
    where = locate_registry(local_copy(registry))
    state, problems = inspect_log(where)
    for version in dict.fromkeys([*state.published, *(entry["version"] for entry in state.entries)]):
        channels = ", ".join(state.channels_of(version))
        name = f"version {version[:SHORT]}" + (f" ({channels})" if channels else "")
        problems += [f"{name}: {problem}" for problem in problems_of(where, version)]
    left = unpublished(where, state)
    if left and not (where / LOG).exists() and not problems:
        problems.append(f"there is no {LOG}, so nothing says which of {len(left)} versions were published")
    notes = []
    # Without a log that can be followed, nothing says what was published.
    if not problems:
        notes = [f"version {v[:SHORT]}: its publishing was cut short" for v in left]
        if state.interrupted:
            notes.append("the last line of the log: its action was cut short, and did not happen")
    return Verified(len(state.published), len(state.entries), problems, notes)
