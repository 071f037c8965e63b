"""Loads what a channel has: only a promoted version, only if every hash holds, only for its own language model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.reading.compatibility import check_model, choose_site
from lightsae.errors import ConfigError, FormatError
from lightsae.formats.native import load_sae
from lightsae.lm.model import site_in
from lightsae.production.registry.hub import local_copy
from lightsae.production.registry.store import check_channel, open_registry
from lightsae.production.registry.version import SHORT, check_intact, folder_of
from lightsae.sae import SiteRef, SparseAutoencoder


@dataclass(frozen=True)
class Promoted:
    """What a channel has.

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

    Compared are: the log with its hashes, the channel with the log, version.json with the version's id, every file with
    version.json, the tensors with sae.json, the feature dictionary with its SAE, and both with the model.

    Args:
        registry: Folder of a registry, or `hub:org/name`.
        channel: `staging` or `production`.
        model: The LanguageModel or transformers model that it is for; None: not compared.
        site: Where it is to write; has to be named where the SAE predicts several.
        device: Where the SAE goes.

    Raises:
        ConfigError: There is no such channel, or nothing was promoted to it.
        FormatError: Anything is not what was promoted; says what.
        ModelError: The model is another one.
        SiteError: The site is another one.
    """
    check_channel(channel)
    with local_copy(registry, channel=channel) as here:
        where, state = open_registry(here)
        version = state.has(channel)
        if version is None:
            raise ConfigError(
                f"channel is {channel!r}, and nothing in {str(registry)!r} was promoted to it: lightsae registry "
                f"promote VERSION --channel {channel} --registry {registry}"
            )
        told = check_intact(where, version, str(registry))
        folder = folder_of(where, version)
        dictionary = FeatureDictionary.open(folder / "dictionary")
        if dictionary.id != told["dictionary"]:
            raise FormatError(
                f"Version {version[:SHORT]} is of the feature dictionary {told['dictionary'][:SHORT]}, but holds "
                f"{dictionary.id[:SHORT]}; publish it again."
            )
        sae = load_sae(folder / "sae", device)
        dictionary.check_belongs_to(folder / "sae")
    named: dict[str, Any] = dictionary.manifest["model"]
    written = choose_site(sae, site)
    if model is not None:
        check_model(model, str(named.get("name") or ""), named.get("revision"))
        site_in(model, written.site)
    return Promoted(
        sae=sae,
        dictionary=dictionary,
        version=version,
        channel=channel,
        site=written,
        model=str(named.get("name") or ""),
        revision=named.get("revision"),
        folder=folder,
    )


def promoted_or_given(
    model: Any,
    sae: SparseAutoencoder | str | Path | None,
    dictionary: FeatureDictionary | str | Path | None,
    channel: str | None,
    registry: str | Path,
    site: str | None,
    any_model: bool,
) -> tuple[SparseAutoencoder | str | Path, FeatureDictionary | str | Path | None]:
    """Return the SAE and the feature dictionary that a caller gave, or those that a channel has.

    Args:
        model: That they are for.
        sae: As given; None with a channel.
        dictionary: As given; None with a channel.
        channel: `staging` or `production`; None: what was given.
        registry: Where the channel is.
        site: Where the SAE is to write; None where it predicts one site.
        any_model: Whether another model than theirs is meant.

    Raises:
        ConfigError: Neither, or both, were given.
    """
    if channel is None:
        if sae is None:
            raise ConfigError("sae is missing: give the SAE, its folder, or channel='production' with a registry.")
        return sae, dictionary
    if sae is not None or dictionary is not None:
        raise ConfigError(f"channel is {channel!r}, and sae or dictionary is given too; keep one of the two.")
    promoted = load_channel(registry, channel, None if any_model else model, site=site)
    return promoted.sae, promoted.dictionary
