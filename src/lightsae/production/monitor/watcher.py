"""The latents of some features on the watched tokens of every forward pass; reads only.

Axes:  B rows, S columns of the pass, D width of a site, n features.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightsae.errors import ModelError, SiteError
from lightsae.lm import LanguageModel
from lightsae.lm.hooks import hooked
from lightsae.lm.model import name_of, site_in
from lightsae.production.monitor.watched_passes import Watched, WatchedPasses
from lightsae.sae import SiteRef, SparseAutoencoder
from lightsae.sae.latent_reader import LatentReader


@dataclass(frozen=True)
class Pass:
    """What was seen in a forward pass; on the model's device."""

    latents: Float[Tensor, "B S n"]
    seen: Watched


class Watcher:
    """Works out latents while the model runs.

    Args:
        model: A LanguageModel, or a transformers model.
        sae: The SAE; all that it reads is in this model.
        features: Whose latents.
        special: Ids of the special tokens.
        at_text: Called when new texts begin, and when a `generate` ends.
        at_end: Called with each pass, when it is over.

    Raises:
        SiteError: The SAE reads a site that the model lacks.
    """

    def __init__(
        self,
        model: Any,
        sae: SparseAutoencoder,
        features: Sequence[int],
        special: Iterable[int],
        at_text: Callable[[], None],
        at_end: Callable[[Pass], None],
    ) -> None:
        reads = list(sae.widths.read)
        self._model, self._sae, self._features, self._at_end = model, sae, list(features), at_end
        self._sites = {ref: site_in(model, ref.site) for ref in reads}
        vocabulary = inner_model(model).get_input_embeddings().num_embeddings
        self._passes = WatchedPasses(special, vocabulary, at_text, self._end)
        self._reader: LatentReader | None = None
        self._device: torch.device | None = None
        self._read: dict[SiteRef, Tensor] = {}
        self._pass: Pass | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the hooks."""
        inner = inner_model(self._model)
        with ExitStack() as stack:
            for ref, site in self._sites.items():
                stack.enter_context(hooked(inner, site, partial(self._see, ref)))
            stack.enter_context(self._passes.watched(inner))
            yield

    @torch.no_grad()
    def _see(self, site: SiteRef, x: Tensor) -> None:
        if x.shape[2] != self._sae.widths.read[site]:
            raise SiteError(
                f"{site.site!r} has width {x.shape[2]} in {name_of(self._model)!r}, and the SAE reads "
                f"{self._sae.widths.read[site]} numbers: it belongs to another model."
            )
        flat = x.detach().reshape(-1, x.shape[2])
        # A copy if it has to wait: a later module could write in place.
        self._read[site] = flat if len(self._sites) == 1 else flat.clone()
        if len(self._read) < len(self._sites):
            return
        if x.device != self._device:
            self._device = x.device
            self._reader = LatentReader(self._sae, self._features, x.device)
        assert self._reader is not None
        parts = [self._read[ref].to(x.device) for ref in self._sites]
        latents = self._reader(parts[0] if len(parts) == 1 else torch.cat([part.float() for part in parts], 1))
        self._read.clear()
        seen = self._passes.look(x.shape[:2], x.device)
        self._pass = Pass(latents.reshape(*x.shape[:2], -1), seen)

    def places(self, one: Pass) -> Int[Tensor, "B S"]:
        """Return each token's position in its row, from 0, without padding; of the pass that just ended."""
        return self._passes.places(one.seen.tokens.shape, one.latents.device)

    def _end(self) -> None:
        # There is none if the model failed before the site.
        ended, self._pass = self._pass, None
        self._read.clear()
        if ended is not None:
            self._at_end(ended)


def inner_model(model: Any) -> Any:
    """Return the transformers model of a LanguageModel, or the model itself."""
    return model.model if isinstance(model, LanguageModel) else model


def tokenizer_of(model: Any) -> Any:
    """Return the tokenizer of a LanguageModel; None if there is none, and for others."""
    if not isinstance(model, LanguageModel):
        return None
    try:
        return model.tokenizer
    except ModelError:
        return None


def special_ids(model: Any, tokenizer: Any) -> set[int]:
    """Return the ids of special tokens: the tokenizer's, and those that the model's config names."""
    ids = set(getattr(tokenizer, "all_special_ids", None) or [])
    inner = inner_model(model)
    for config in (inner.config.get_text_config(), getattr(inner, "generation_config", None)):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            ids |= set(value if isinstance(value, list | tuple) else [value]) - {None}
    return ids
