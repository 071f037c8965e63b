"""The latents of some features on the watched tokens of every forward pass; reads only.

Axes:  B rows, S columns of the pass, n features.

Watched is what a feature dictionary counts: all tokens but padding, special tokens, and position 0, an attention sink.
Each token counts once: if `generate` works without a KV cache, and runs the whole text again for each token, only
the new columns do. The last token that is generated is never run through the model, and is not watched; those that
an assistant proposes and the model rejects are.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from lightsae.errors import ModelError, SiteError
from lightsae.lm import LanguageModel
from lightsae.lm.hooks import attach_before, hooked
from lightsae.lm.model import name_of, site_in
from lightsae.lm.passes import Passes
from lightsae.production.monitor.watched_features import WatchedFeatures
from lightsae.sae import SiteRef
from lightsae.sae.latent_reader import LatentReader


@dataclass(frozen=True)
class Pass:
    """What was seen in a forward pass; on the model's device.

    Attributes:
        latents: Of the features.
        tokens: Ids; -1 if the model was given embeddings.
        watched: Which tokens count.
        generated: Which columns were generated.
        roles: Whose words each token is, by its number in `activations.roles`; None: nobody asked.
    """

    latents: Float[Tensor, "B S n"]
    tokens: Int[Tensor, "B S"]
    watched: Bool[Tensor, "B S"]
    generated: Bool[Tensor, " S"]
    roles: UInt8[Tensor, "B S"] | None = None


class _Seen(threading.local):
    """What was seen so far of the pass that a thread is running."""

    def __init__(self) -> None:
        self.read: dict[SiteRef, Tensor] = {}
        self.tokens: Tensor | None = None
        self.ended: Pass | None = None
        self.padding: set[int] = set()
        self.depth = 0
        self.done = 0  # columns of the `generate` under way that earlier passes saw


class Watcher(Passes):
    """Works out latents while the model runs, in whatever thread; the functions are called in that thread.

    Args:
        features: Whose latents, in which model.
        tokenizer: Names special tokens, beside the model's config; None if there is none.
        at_text: Called when a pass begins with new texts, and when a `generate` ends.
        at_end: Called with each pass, when it is over.

    Raises:
        SiteError: The SAE reads a site that the model lacks.
    """

    def __init__(
        self, features: WatchedFeatures, tokenizer: Any, at_text: Callable[[], None], at_end: Callable[[Pass], None]
    ) -> None:
        super().__init__("all", skip_first=1)
        self._watched, self._at_text, self._at_end = features, at_text, at_end
        self._sites = {ref: site_in(features.model, ref.site) for ref in features.sae.widths.read}
        inner = inner_model(features.model)
        # A table: one look-up per pass, and nothing is sent to the device.
        self._special = torch.zeros(inner.get_input_embeddings().num_embeddings, dtype=torch.bool)
        self._special[[i for i in _special_ids(inner, tokenizer) if 0 <= i < len(self._special)]] = True
        self._reader: LatentReader | None = None
        self._device: torch.device | None = None
        self._seen = _Seen()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the hooks."""
        inner = inner_model(self._watched.model)
        entries = {inner, inner.base_model}
        with ExitStack() as stack:
            for ref, site in self._sites.items():
                stack.enter_context(hooked(inner, site, functools.partial(self._see, ref)))
            # What is followed first knows the cache.
            stack.enter_context(self.followed(inner, lambda: None))
            for entry in entries:
                stack.callback(attach_before(entry, self._enter).remove)
                stack.callback(entry.register_forward_hook(self._leave, always_call=True).remove)
            yield

    def places(self, one: Pass) -> Int[Tensor, "B S"]:
        """Return each token's position in its row, from 0, without padding; of the pass that just ended."""
        return self._place(one.tokens.shape, one.latents.device)[0]

    # The pass of a model with a head runs its body's inside: the outer one counts.
    def _enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen = self._seen
        seen.depth += 1
        if seen.depth == 1:
            seen.tokens = seen.ended = None
            if self._now.past == 0 and seen.done == 0:
                self._at_text()
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor) and not ids.is_floating_point():
            seen.tokens = ids

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        seen = self._seen
        if seen.depth == 0:  # another thread's pass, which began before the hooks were there
            return
        seen.depth -= 1
        if seen.depth == 0:
            # There is none if the model failed before the site.
            ended, seen.ended = seen.ended, None
            seen.read.clear()
            if ended is not None:
                self._at_end(ended)

    def _following(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        inner = super()._following(generate)

        @functools.wraps(generate)
        def followed(*args: Any, **kwargs: Any) -> Any:
            seen = self._seen
            outer = seen.done, seen.padding
            pads = (kwargs.get("pad_token_id"), getattr(kwargs.get("generation_config"), "pad_token_id", None))
            # Rows that are done are filled with it, in plain sight.
            seen.done, seen.padding = 0, {pad for pad in pads if isinstance(pad, int)}
            try:
                return inner(*args, **kwargs)
            finally:
                seen.done, seen.padding = outer
                self._at_text()

        return followed

    @torch.no_grad()
    def _see(self, ref: SiteRef, x: Tensor) -> None:
        model, sae = self._watched.model, self._watched.sae
        if x.shape[2] != sae.widths.read[ref]:
            raise SiteError(
                f"{ref.site!r} has width {x.shape[2]} in {name_of(model)!r}, and the SAE reads "
                f"{sae.widths.read[ref]} numbers: it belongs to another model."
            )
        flat = x.detach().reshape(-1, x.shape[2])
        # A copy if it has to wait: a later module could write in place.
        read = self._seen.read
        read[ref] = flat if len(self._sites) == 1 else flat.clone()
        if len(read) < len(self._sites):
            return
        if self._reader is None or x.device != self._device:
            self._device, self._reader = x.device, LatentReader(sae, self._watched.numbers, x.device)
        parts = [read[ref].to(x.device) for ref in self._sites]
        latents = self._reader(parts[0] if len(parts) == 1 else torch.cat([part.float() for part in parts], 1))
        read.clear()
        self._seen.ended = self._look(latents.reshape(*x.shape[:2], -1))

    def _look(self, latents: Float[Tensor, "B S n"]) -> Pass:
        """Return the pass under way."""
        rows, device, seen = latents.shape[:2], latents.device, self._seen
        length, past = rows[1], self._now.past
        prompt = (past or length) if self._generate.prompt is None else self._generate.prompt
        columns = torch.arange(past, past + length, device=device)
        generated = columns >= prompt
        inside = self.inside(rows, device)
        watched = inside if isinstance(inside, Tensor) else torch.full(rows, inside, device=device)
        if seen.tokens is None or seen.tokens.shape != rows:
            tokens = torch.full(rows, -1, device=device)
        else:
            tokens = seen.tokens.to(device)
            self._special = self._special.to(device)
            watched = watched & ~self._special[tokens]
            for pad in seen.padding:
                watched = watched & ~((tokens == pad) & generated)
        if self._generate.prompt is not None:
            if past == 0 and seen.done:
                watched = watched & (columns >= seen.done)
            seen.done = past + length
        return Pass(latents, tokens, watched, generated)


def inner_model(model: Any) -> Any:
    """Return the transformers model of a LanguageModel, or the model itself."""
    return model.model if isinstance(model, LanguageModel) else model


def tokenizer_of(model: Any) -> Any:
    """Return the tokenizer of a LanguageModel; None if there is none, and for others."""
    try:
        return model.tokenizer if isinstance(model, LanguageModel) else None
    except ModelError:
        return None


def _special_ids(inner: Any, tokenizer: Any) -> set[int]:
    """Return the ids of special tokens: the tokenizer's, and those that the model's config names."""
    ids = set(getattr(tokenizer, "all_special_ids", None) or [])
    for config in (inner.config.get_text_config(), getattr(inner, "generation_config", None)):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            ids |= set(value if isinstance(value, list | tuple) else [value]) - {None}
    return ids
