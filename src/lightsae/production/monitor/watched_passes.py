"""Which tokens of a forward pass are watched, where each stands, and when a text begins and a pass ends.

Axes:  B rows, S columns of the pass.

Watched is what a feature dictionary counts: all tokens but padding, special tokens, and position 0, an attention sink.
Each token counts once: if `generate` works without a KV cache, and runs the whole text again for each token, only
the new columns do. The last token that is generated is never run through the model, and is not watched; those that
an assistant proposes and the model rejects are.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lightsae.lm.passes import Passes


@dataclass(frozen=True)
class Watched:
    """The tokens of a pass.

    Attributes:
        tokens: Ids; -1 if the model was given embeddings.
        watched: Which count.
        generated: Which columns were generated.
    """

    tokens: Int[Tensor, "B S"]
    watched: Bool[Tensor, "B S"]
    generated: Bool[Tensor, " S"]


class WatchedPasses(Passes):
    """Follows the forward passes of a model.

    Args:
        special: Ids of the special tokens.
        vocabulary: How many ids there are.
        begins: Called when a pass begins with new texts, and when a `generate` ends.
        ends: Called at the end of each pass.
    """

    def __init__(
        self, special: Iterable[int], vocabulary: int, begins: Callable[[], None], ends: Callable[[], None]
    ) -> None:
        super().__init__("all", skip_first=1)
        self._special, self._padding = frozenset(special), frozenset[int]()
        self._vocabulary = vocabulary
        self._tables: dict[tuple[frozenset[int], torch.device], Tensor] = {}
        self._begins, self._ends = begins, ends
        self._tokens: Tensor | None = None
        self._depth = 0
        self._done = 0  # columns of the `generate` under way that earlier passes saw

    @contextmanager
    def watched(self, model: Any) -> Iterator[None]:
        """While open, follow `model`."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._depth += 1
            if self._depth == 1:
                self._tokens = None
                if self._past == 0 and self._done == 0:
                    self._begins()
            ids = kwargs.get("input_ids", args[0] if args else None)
            if isinstance(ids, Tensor) and not ids.is_floating_point():
                self._tokens = ids

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            self._depth -= 1
            if self._depth == 0:
                self._ends()

        # The pass of a model with a head runs inside; what is followed first knows the cache.
        with self.followed(model, lambda: None):
            entries = {model, model.base_model}
            handles = [entry.register_forward_pre_hook(enter, with_kwargs=True) for entry in entries]
            handles += [entry.register_forward_hook(leave, always_call=True) for entry in entries]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def _following(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        inner = super()._following(generate)

        @functools.wraps(generate)
        def followed(*args: Any, **kwargs: Any) -> Any:
            outer = self._done, self._padding
            config = kwargs.get("generation_config")
            pads = (kwargs.get("pad_token_id"), getattr(config, "pad_token_id", None))
            # Rows that are done are filled with it, in plain sight.
            self._done, self._padding = 0, frozenset(pad for pad in pads if isinstance(pad, int))
            try:
                return inner(*args, **kwargs)
            finally:
                self._done, self._padding = outer
                self._begins()

        return followed

    def look(self, rows: torch.Size, device: torch.device) -> Watched:
        """Return the tokens of the pass under way, of shape `rows`."""
        length, past = rows[1], self._past
        prompt = (past or length) if self._prompt is None else self._prompt
        columns = torch.arange(past, past + length, device=device)
        generated = columns >= prompt
        inside = self.inside(rows, device)
        watched = inside if isinstance(inside, Tensor) else torch.full(rows, inside, device=device)
        if self._tokens is None or self._tokens.shape != rows:
            tokens = torch.full(rows, -1, device=device)
        else:
            tokens = self._tokens.to(device)
            watched = watched & ~self._table(self._special, device)[tokens]
            if self._padding and past + length > prompt:
                watched = watched & ~(self._table(self._padding, device)[tokens] & generated)
        if self._prompt is not None:
            if past == 0 and self._done:
                watched = watched & (columns >= self._done)
            self._done = past + length
        return Watched(tokens, watched, generated)

    def places(self, rows: torch.Size, device: torch.device) -> Int[Tensor, "B S"]:
        """Return each token's position in its row, from 0, without padding, in the pass under way."""
        return self._place(rows, device)[0]

    def _table(self, ids: frozenset[int], device: torch.device) -> Tensor:
        """Return which ids of the vocabulary are among some: one look-up a pass, and nothing is sent to the device."""
        if (ids, device) not in self._tables:
            table = torch.zeros(self._vocabulary, dtype=torch.bool)
            table[[i for i in ids if 0 <= i < self._vocabulary]] = True
            self._tables[ids, device] = table.to(device)
        return self._tables[ids, device]
