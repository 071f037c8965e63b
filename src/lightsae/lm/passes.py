"""Which vectors of a forward pass are steered: the pass under way, its KV cache, its padding, the prompt's end.

Axes:    B rows, S positions of the pass, P positions in the cache.

A position counts from a row's first real token, 0: padding on the left does not shift it. Padding is never touched.
Generated tokens are those after what `generate` was given, with and without KV cache; outside `generate`, those of a
pass on top of a cache. The prompt's last token, which the first generated one is read from, belongs to the prompt.
Each thread that runs the model has its own pass under way.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from lightsae.errors import ConfigError
from lightsae.lm.hooks import PerThread, attach_before

Positions = str | Sequence[int]  # "all", "generated", or numbers


class _Generate(threading.local):
    """The `generate` that a thread is running."""

    prompt: int | None = None  # columns that it was given; None outside


@dataclass(frozen=True)
class _Now:
    """The pass under way."""

    past: int = 0
    mask: Any = None
    ids: Any = None


class Passes:
    """Follows the forward passes of a model, and says which of their vectors are in scope.

    Args:
        positions: `all`, `generated`, or positions in the row.
        skip_first: With `all`, how many first positions are left alone: attention sinks. 0: none.
    """

    def __init__(self, positions: Positions, skip_first: int) -> None:
        if isinstance(positions, str) and positions not in ("all", "generated"):
            raise ConfigError("positions", positions, "write 'all', 'generated' or positions such as [3, 4]")
        if not isinstance(positions, str):
            positions = sorted(set(positions))
            if not positions or positions[0] < 0:
                raise ConfigError("positions", positions, "write some, counted from a row's first token, 0")
        if skip_first < 0:
            raise ConfigError("skip_first", skip_first, "write how many first positions to leave alone, 0 for none")
        self.positions, self.skip_first = positions, skip_first
        self._generate, self._passes = _Generate(), PerThread(_Now())

    @contextmanager
    def followed(self, model: Any, at_start: Callable[[], None]) -> Iterator[None]:
        """While open, follow `model`; `at_start` is called when a pass begins."""

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if len(args) >= 2:
                kwargs = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
            cache = kwargs.get("past_key_values")
            past = 0 if cache is None else int(cache.get_seq_length())
            self._passes.set(_Now(past, kwargs.get("attention_mask"), kwargs.get("position_ids")))
            at_start()

        handles = [attach_before(m, begin) for m in {model, model.base_model}]
        outer = vars(model).get("generate")
        if hasattr(model, "generate"):
            model.generate = self._following(model.generate)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if outer is not None:
                model.generate = outer
            elif "generate" in vars(model):
                del model.generate

    def _following(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(generate)
        def followed(inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
            prompts = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
            outer = self._generate.prompt
            self._generate.prompt = max(
                (t.shape[1] for t in prompts if isinstance(t, Tensor)), default=1
            )  # nothing: BOS
            try:
                return generate(inputs, *args, **kwargs)
            finally:
                self._generate.prompt = outer

        return followed

    @property
    def _now(self) -> _Now:
        return self._passes.get()

    def inside(self, rows: torch.Size, device: torch.device) -> bool | Bool[Tensor, "B S"]:
        """Return which vectors of the pass are in scope; True or False if all or none are."""
        length, now = rows[1], self._now
        past = now.past
        prompt = self._generate.prompt if self._generate.prompt is not None else past or length
        if self.positions == "generated":
            if past >= prompt:
                return True
            if past + length <= prompt:
                return False
            return (torch.arange(past, past + length, device=device) >= prompt).expand(rows)
        if self.positions == "all":
            # What `generate` has made is no padding, and comes after at least one real token.
            if self._generate.prompt is not None and past >= prompt and self.skip_first <= 1:
                return True
            if now.mask is None and now.ids is None and past >= self.skip_first:
                return True
        position, real = self._place(rows, device)
        if self.positions == "all":
            return real & (position >= self.skip_first)
        return real & torch.isin(position, torch.tensor(self.positions, device=device))

    def _place(self, rows: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each vector's position in its row, and whether it is a real token."""
        now = self._now
        end = now.past + rows[1]
        real = torch.ones((), dtype=torch.bool, device=device).expand(rows)
        mask, ids = now.mask, now.ids
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= end:
            unpadded = mask[:, :end].to(device).long()
            position = unpadded.cumsum(1) - 1
            return position[:, -rows[1] :], unpadded[:, -rows[1] :].bool()
        if isinstance(ids, Tensor) and ids.shape[-1] == rows[1]:
            return ids.to(device).expand(rows), real
        return torch.arange(now.past, end, device=device).expand(rows), real
