"""Show a function the activations at a site during each forward pass; capturing and intervening both stand on this.

Axes: B rows, S positions, D width of the site.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightsae.errors import SiteError
from lightsae.lm.sites import Site


@contextmanager
def hooked(model: Any, site: Site, visit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """While open, call `visit` with the (B, S, D) at `site` whenever its module runs.

    What `visit` returns takes the activations' place; None leaves them. Functions at the same site run in the order in
    which they were attached, each on what the one before it left.

    Raises:
        SiteError: In the forward pass, where the site does not hold one vector a token.
    """
    rows = torch.Size()  # (B, S) of the pass under way

    def note_rows(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal rows
        tokens = args[0] if args else kwargs.get("input_ids")
        rows = (kwargs["inputs_embeds"] if tokens is None else tokens).shape[:2]

    def replaced(value: Any) -> Any:
        """What has to stand where the module took or returned `value`; None where nothing changes."""
        seen = value[0] if isinstance(value, tuple | list) else value
        if not isinstance(seen, Tensor):
            raise SiteError(f"{site.name!r} holds {type(seen).__name__}, not a tensor. Write a module nearer to it.")
        # OPT's MLP works on (B * S, D).
        vectors = seen.reshape(*rows, -1) if seen.ndim == 2 and len(seen) == rows.numel() else seen
        if vectors.ndim != 3 or vectors.shape[:2] != rows:
            raise SiteError(
                f"{site.name!r} has shape {tuple(seen.shape)} for tokens of shape {tuple(rows)}; "
                "a site holds one vector a token."
            )
        new = visit(vectors)
        if new is None:
            return None
        new = new.reshape(seen.shape)
        return new if seen is value else type(value)((new, *value[1:]))

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            new = replaced(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        # Blocks call attention by keyword; the activations come first.
        key = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        new = replaced(kwargs[key])
        return None if new is None else (args, {**kwargs, key: new})

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return replaced(output)

    # A model with a head calls its base model, or (OPT) a part of that; a caller may start at either.
    entries = {model, model.base_model}
    handles = [entry.register_forward_pre_hook(note_rows, with_kwargs=True) for entry in entries]
    if site.side == "input":
        handles.append(site.module.register_forward_pre_hook(before, with_kwargs=True))
    else:
        handles.append(site.module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
