"""Which vectors of a forward pass are steered: the pass under way, its KV cache, its padding, the prompt's end.

Axes:    B rows, S positions of the pass, P positions in the cache.

A position counts from a row's first real token, 0: padding on the left does not shift it. Padding is never touched.
Generated tokens are those after what `generate` was given, with and without KV cache; outside `generate`, those of a
pass on top of a cache. The prompt's last token, which the first generated one is read from, belongs to the prompt.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from lightsae.errors import ConfigError

Positions = str | Sequence[int]  # "all", "generated", or numbers


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
        self._prompt: int | None = None  # columns that `generate` was given; None outside
        self._past = 0
        self._mask: Any = None
        self._ids: Any = None

    @contextmanager
    def followed(self, model: Any, at_start: Callable[[], None]) -> Iterator[None]:
        """While open, follow `model`; `at_start` is called when a pass begins."""

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if len(args) >= 2:
                kwargs = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
            cache = kwargs.get("past_key_values")
            self._past = 0 if cache is None else int(cache.get_seq_length())
            self._mask, self._ids = kwargs.get("attention_mask"), kwargs.get("position_ids")
            at_start()

        handles = [m.register_forward_pre_hook(begin, with_kwargs=True) for m in {model, model.base_model}]
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
            outer = self._prompt
            self._prompt = max((t.shape[1] for t in prompts if isinstance(t, Tensor)), default=1)  # nothing: BOS
            try:
                return generate(inputs, *args, **kwargs)
            finally:
                self._prompt = outer

        return followed

    def inside(self, rows: torch.Size, device: torch.device) -> bool | Bool[Tensor, "B S"]:
        """Return which vectors of the pass are in scope; True or False if all or none are."""
        length, past = rows[1], self._past
        prompt = self._prompt if self._prompt is not None else past or length
        if self.positions == "generated":
            if past >= prompt:
                return True
            if past + length <= prompt:
                return False
            return (torch.arange(past, past + length, device=device) >= prompt).expand(rows)
        if self.positions == "all":
            # What `generate` has made is no padding, and comes after at least one real token.
            if self._prompt is not None and past >= prompt and self.skip_first <= 1:
                return True
            if self._mask is None and self._ids is None and past >= self.skip_first:
                return True
        position, real = self._place(rows, device)
        if self.positions == "all":
            return real & (position >= self.skip_first)
        return real & torch.isin(position, torch.tensor(self.positions, device=device))

    def _place(self, rows: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each vector's position in its row, and whether it is a real token."""
        end = self._past + rows[1]
        real = torch.ones((), dtype=torch.bool, device=device).expand(rows)
        mask, ids = self._mask, self._ids
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= end:
            unpadded = mask[:, :end].to(device).long()
            position = unpadded.cumsum(1) - 1
            return position[:, -rows[1] :], unpadded[:, -rows[1] :].bool()
        if isinstance(ids, Tensor) and ids.shape[-1] == rows[1]:
            return ids.to(device).expand(rows), real
        return torch.arange(self._past, end, device=device).expand(rows), real
