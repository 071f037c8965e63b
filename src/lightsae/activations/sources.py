"""Where activations come from: language models with text, activation files, or a synthetic world.

Each source knows its sites, makes the fills of the stream, and holds out data for validation.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lightsae.activations.contents import Contents, digest
from lightsae.activations.files import ActivationFiles, Chunks, FileFills, held_out_chunks
from lightsae.activations.settings import DataSettings, SiteNames
from lightsae.activations.stream import FillSource, HeldOut, Process, StreamPlan
from lightsae.activations.synthetic.config import SyntheticConfig
from lightsae.activations.synthetic.fills import SITE as SYNTHETIC
from lightsae.activations.synthetic.fills import SyntheticFills, held_out_samples
from lightsae.activations.synthetic.world import SyntheticWorld
from lightsae.activations.timings import Timings
from lightsae.errors import ConfigError, LightsaeError, SiteError, arg, under
from lightsae.lm import LanguageModel
from lightsae.sae import SiteRef, Widths


class ActivationSource(ABC):
    """One kind of source.

    Attributes:
        language_models: The models that are loaded, by name; empty if none is run.
    """

    def __init__(self, settings: DataSettings, timings: Timings) -> None:
        self.settings, self.timings = settings, timings
        self.language_models: dict[str, LanguageModel] = {}

    @property
    def predicts_tokens(self) -> bool:
        """Whether there is a language model here that predicts the next token."""
        return False

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """Return the dtype in which activations of a language model are stored; None if none are."""
        return None

    def preflight(self) -> None:  # noqa: B027
        """Check that everything exists and fits, without loading weights or text."""

    @abstractmethod
    def site(self, name: str | None) -> SiteRef:
        """Return the site that a user's name means; None: the only one."""

    @abstractmethod
    def width(self, site: SiteRef) -> int:
        """Return the width of a site."""

    def widths(self, site: SiteNames = None, target_site: SiteNames = None) -> Widths:
        """Return the sites and widths of an SAE; see `ActivationDataModule.widths_at`."""
        settings = self.settings
        target = settings.target_site if site is None and target_site is None else target_site
        with _site_called("site", handed_in=site is not None):
            read = self._widths_of(site if site is not None else settings.site)
        with _site_called("target_site", handed_in=target_site is not None):
            return Widths(read, self._widths_of(target) if target is not None else read)

    def _widths_of(self, names: SiteNames) -> dict[SiteRef, int]:
        sites = [self.site(name) for name in (names if isinstance(names, list) else [names])]
        if len(set(sites)) < len(sites):
            raise ConfigError(f"{arg('site')} names a site twice: {names}.")
        return {site: self.width(site) for site in sites}

    @abstractmethod
    def fill_tokens(self, world: int) -> int:
        """Return the tokens that one rank's fill serves."""

    def epoch_tokens(self) -> int | None:
        """Return the training tokens of an epoch; None if there are no epochs."""
        return None

    @abstractmethod
    def fills(self, plan: StreamPlan, process: Process) -> FillSource:
        """Return what makes the numbered fills."""

    @abstractmethod
    def held_out(self, process: Process) -> HeldOut:
        """Return the validation batches of a process."""

    @abstractmethod
    def contents(self) -> Contents:
        """Return what the data holds, beyond what the settings say. Read once, cheaply; see `contents`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return where the activations come from, in plain values."""


@contextmanager
def _site_called(name: str, *, handed_in: bool) -> Iterator[None]:
    """Call the site in an error `name`: one of the data, as all other arguments are, unless it was `handed_in`."""

    def change(of: str, argument: str) -> tuple[str, str]:
        if argument != "site":
            return of or "data", argument
        return of or ("" if handed_in else "data"), name

    try:
        yield
    except LightsaeError as error:
        error.rename(change)
        raise


class FileSource(ActivationSource):
    """Files of activations, with one site."""

    def __init__(self, settings: DataSettings, location: str, timings: Timings) -> None:
        super().__init__(settings, timings)
        self.location = location

    @cached_property
    def files(self) -> ActivationFiles:
        return ActivationFiles(self.location)

    def preflight(self) -> None:
        _ = self.files

    def site(self, name: str | None) -> SiteRef:
        return only_site(self.files.site, name, f"{arg('activations')} ({self.location})")

    def width(self, site: SiteRef) -> int:
        return self.files.width

    @cached_property
    def chunks(self) -> Chunks:
        return Chunks(len(self.files), self.settings.validation_fraction, self.settings.buffer_tokens)

    def fill_tokens(self, world: int) -> int:
        return self.chunks.in_fill(self.settings.buffer_tokens, self.settings.batch_tokens, world) * self.chunks.size

    def epoch_tokens(self) -> int | None:
        return int(len(self.files) * (1 - self.settings.validation_fraction))

    def fills(self, plan: StreamPlan, process: Process) -> FileFills:
        buffer = process.buffer(self.fill_tokens(process.world), self.files.width)
        return FileFills(self.files, self.chunks, plan, buffer, self.timings)

    def held_out(self, process: Process) -> HeldOut:
        tokens = self.settings.val_tokens, self.settings.batch_tokens
        return held_out_chunks(self.files, self.chunks, *tokens, process)

    def contents(self) -> Contents:
        return {"activations": self.files.contents()}

    def describe(self) -> dict[str, Any]:
        settings = self.settings
        name = Path(self.location).name
        return {"activations": name, "normalisation": settings.normalisation, "seed": settings.seed}


class SyntheticSource(ActivationSource):
    """Sums of known features, with one site."""

    def __init__(self, settings: DataSettings, timings: Timings) -> None:
        super().__init__(settings, timings)
        with under("synthetic"):
            self.world = SyntheticWorld(settings.synthetic or SyntheticConfig())

    def site(self, name: str | None) -> SiteRef:
        return only_site(SYNTHETIC, name, f"{arg('dataset')} synthetic")

    def width(self, site: SiteRef) -> int:
        return self.world.width

    def fill_tokens(self, world: int) -> int:
        return self.settings.buffer_tokens // self.settings.batch_tokens * self.settings.batch_tokens

    def fills(self, plan: StreamPlan, process: Process) -> SyntheticFills:
        buffer = process.buffer(self.fill_tokens(process.world), self.world.width)
        return SyntheticFills(self.world, plan, buffer, self.timings)

    def held_out(self, process: Process) -> HeldOut:
        settings = self.settings
        assert settings.seed is not None
        return held_out_samples(self.world, settings.val_tokens, settings.batch_tokens, settings.seed, process)

    def contents(self) -> Contents:
        return {"synthetic": {"the world": digest([repr(self.world.config).encode()])}}

    def describe(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "dataset": "synthetic",
            "synthetic": self.world.config.__dict__,
            "normalisation": settings.normalisation,
            "seed": settings.seed,
        }


def only_site(there: SiteRef, name: str | None, where: str) -> SiteRef:
    """Return the one site of a source, which needs no name.

    Raises:
        SiteError: Another one is asked for.
    """
    if name not in (None, there.site):
        raise SiteError(
            f"{arg('site')} is {name!r}, but {where} has one site, {there.site!r}; leave {arg('site')} out."
        )
    return there
