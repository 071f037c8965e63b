"""A cache as a source of activations: that of a text and its models, with what the models gave on the disk."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightsae.activations.cache.fills import STRETCH, CacheFills, held_out_rows
from lightsae.activations.cache.manifest import TEXT_SETTINGS, Cache
from lightsae.activations.cache.shards import Spans
from lightsae.activations.contents import Contents
from lightsae.activations.settings import DataSettings
from lightsae.activations.stream import FillSource, HeldOut, Process, StreamPlan
from lightsae.activations.text_source import TextSource
from lightsae.activations.timings import Timings
from lightsae.errors import ConfigError, ModelError, arg
from lightsae.lm import LanguageModel
from lightsae.lm.dtypes import DTYPES
from lightsae.sae import SiteRef


class CacheSource(TextSource):
    """Activations of a text that were written down once.

    Nothing of the models is needed to train. Where a run measures what the SAE costs the model's predictions, the
    model is loaded as it is for text; without it, these figures are missing, and a warning says so.

    Args:
        settings: With the text's settings of the cache in them; see `Cache.text_settings`.
        cache: The cache.
        timings: As for other sources.
    """

    def __init__(self, settings: DataSettings, cache: Cache, timings: Timings) -> None:
        super().__init__(settings, timings)
        self.cache = cache

    @property
    def stored_dtype(self) -> torch.dtype | None:
        return DTYPES[self.cache.identity.dtype]

    def preflight(self) -> None:
        _ = self._stretches, self._held_out_rows

    def site(self, name: str | None) -> SiteRef:
        return self.cache.site(name).ref

    def width(self, site: SiteRef) -> int:
        return self.cache.sites[site].width

    @cached_property
    def _stretches(self) -> Spans:
        spans = Spans(self.cache, "train", STRETCH)
        if len(spans) == 0:
            raise ConfigError(f"{arg('cache')} {self.cache.folder!r} has fewer than {STRETCH} training tokens.")
        return spans

    @cached_property
    def _held_out_rows(self) -> Spans:
        return Spans(self.cache, "validation", self.settings.context_size)

    def _stretches_in_fill(self, world: int) -> int:
        needed = max(self.settings.buffer_tokens // STRETCH, -(-self.settings.batch_tokens // STRETCH))
        return max(1, min(needed, len(self._stretches) // world))

    def fill_tokens(self, world: int) -> int:
        return self._trained_on(self._stretches_in_fill(world) * STRETCH)

    def epoch_tokens(self) -> int | None:
        return self._trained_on(len(self._stretches) * STRETCH)

    def _trained_on(self, tokens: int) -> int:
        """Return how many of some tokens are trained on, on average."""
        context = self.settings.context_size
        return tokens * (context - self.settings.skip_positions) // context

    def fills(self, plan: StreamPlan, process: Process) -> FillSource:
        reading, per_fill = self.read_settings(process), self._stretches_in_fill(plan.world)
        return CacheFills(self.cache, self._stretches, reading, plan, process, per_fill, self.timings)

    def held_out(self, process: Process) -> HeldOut:
        settings, there = self.settings, self.cache.manifest.tokens("validation")
        if there < settings.val_tokens // 2:
            rank_zero_warn(f"The cache has {there} held-out tokens; val_tokens asks for {settings.val_tokens}.")
        if process.whole_models:
            self._load_models(process)
        in_batch = max(1, settings.batch_tokens // settings.context_size)
        return held_out_rows(self.cache, self._held_out_rows, settings.val_tokens, in_batch, process)

    def _load_models(self, process: Process) -> None:
        """Load the models that the cache was made with, if they are here.

        Raises:
            ModelError: What has their name here is another model.
        """
        identity = self.cache.identity
        try:
            held = self.contents_of_models()
            loaded = self.models(replace(process, dtype=DTYPES[identity.model_dtype]))
        except ModelError as error:
            rank_zero_warn(f"There will be no figures of the language model's predictions: {error}")
            return
        changed = [part for part, value in held.items() if identity.contents["model"].get(part) != value]
        if not changed and _tokenizer_of(loaded[self.settings.model]) == (identity.tokenizer, identity.special):
            return
        what = changed[0] if changed else "its tokenizer"
        raise ModelError(
            f"{arg('model')} {self.settings.model!r} is not the one that {arg('cache')} {self.cache.folder!r} was made "
            f"with: {what} has changed since. Bring that model back, or write the cache anew."
        )

    def contents(self) -> Contents:
        return {"cache": {Path(self.cache.folder).name: self.cache.manifest.digest}}

    def describe(self) -> dict[str, Any]:
        settings, identity = self.settings, self.cache.identity
        values = super().describe() | {name: getattr(settings, name) for name in TEXT_SETTINGS if name != "streaming"}
        values |= {"model_revision": identity.revision or settings.model_revision, "dtype": identity.model_dtype}
        values |= {"cache": Path(self.cache.folder).name}
        return {name: value for name, value in values.items() if value or name not in ("more_models", "target_site")}


def _tokenizer_of(model: LanguageModel) -> tuple[str, tuple[int, ...]]:
    return model.vocabulary.digest, tuple(model.special_token_ids)
