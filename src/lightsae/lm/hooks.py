"""Read and write at a site: `hooked` shows a function the activations there; `capture` stands on it.

`computed_once` spares passes over the same tokens the blocks that they share. Several threads may run one model: what
belongs to the pass under way is `PerThread`'s.

Axes: B rows, S positions, D width of the site.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightsae.errors import SiteError
from lightsae.lm.norms import gain_and_bias, without_gain
from lightsae.lm.sites import Site

Intervention = Callable[[Float[Tensor, "B S D"]], Float[Tensor, "B S D"]]

_thread = threading.local()
T = TypeVar("T")


class PerThread(Generic[T]):
    """A value of each thread; one that has set none, such as autograd's that computes blocks anew, has the latest."""

    def __init__(self, value: T) -> None:
        self._own, self._latest = threading.local(), value

    def set(self, value: T) -> None:
        self._own.value = self._latest = value

    def is_own(self) -> bool:
        """Return whether this thread has set one."""
        return hasattr(self._own, "value")

    def get(self) -> T:
        value: T = getattr(self._own, "value", self._latest)
        return value


def attach_before(
    module: nn.Module, hook: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]
) -> RemovableHandle:
    """Attach a hook that runs before a module, and takes its keyword arguments too.

    Torch attaches it first, and notes then that it takes these: a pass of another thread that comes in between calls it
    without them. That pass began before, and is left alone.
    """

    def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        return None if kwargs is None else hook(module, args, kwargs)

    return module.register_forward_pre_hook(called, with_kwargs=True)


@contextmanager
def apart() -> Iterator[None]:
    """While open, the passes of this thread do not see what other threads have attached.

    For what reads a model beside a thread that intervenes in it.
    """
    was, _thread.is_apart = getattr(_thread, "is_apart", False), True
    try:
        yield
    finally:
        _thread.is_apart = was


@contextmanager
def hooked(
    model: Any, site: Site, visit: Callable[[Tensor], Tensor | None], device: torch.device | None = None
) -> Iterator[None]:
    """While open, call `visit` with the (B, S, D) at `site` whenever its module runs.

    What `visit` returns takes the activations' place; None leaves them. Functions at the same site run in the order in
    which they were attached, each on what the one before it left. Several threads may run the model. Of images S counts
    the model's own positions: patches, and the class token. `visit` sees them on `device`; None: where they are.

    Raises:
        SiteError: In the forward pass, where the site does not hold one vector a token.
    """
    rows_now = PerThread(torch.Size())  # (B, S) of the pass under way; (B,) of images
    here = threading.get_ident()

    def note_rows(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get(model.main_input_name)
        rows_now.set((kwargs["inputs_embeds"] if given is None else given).shape[: 1 if reads_images(model) else 2])

    def replaced(value: Any) -> Any:
        """What has to stand where the module took or returned `value`; None where nothing changes."""
        if getattr(_thread, "is_apart", False) and threading.get_ident() != here:
            return None
        seen = value[0] if isinstance(value, tuple | list) else value
        if not isinstance(seen, Tensor):
            raise SiteError(f"{site.name!r} holds {type(seen).__name__}, not a tensor. Write a module nearer to it.")
        rows = rows_now.get()
        # OPT's MLP and mixtures of experts work on (B * S, D).
        vectors = seen.reshape(*rows, -1) if seen.ndim == 2 and len(rows) == 2 and len(seen) == rows.numel() else seen
        if vectors.ndim != 3 or not rows or vectors.shape[: len(rows)] != rows:
            if not rows_now.is_own():  # another thread's pass, which began before this opened
                return None
            raise SiteError(
                f"{site.name!r} has shape {tuple(seen.shape)} for tokens of shape {tuple(rows)}; "
                "a site holds one vector a token."
            )
        if site.scale == 1:
            new = visited(vectors)
        else:
            scaled = vectors * site.scale
            new = visited(scaled)
            # The change alone, so that what stays as it was changes no bit.
            new = None if new is None else vectors + (new - scaled) / site.scale
        return None if new is None else _with_activations(value, new.reshape(seen.shape))

    def visited(vectors: Tensor) -> Tensor | None:
        shown = vectors if device is None else vectors.to(device)
        new = visit(shown)
        return vectors if new is shown else None if new is None else new.to(vectors.device)

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

    def after_norm(norm: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Any:
        gain, bias = gain_and_bias(norm, output)
        seen = without_gain(output, gain, bias)
        new = replaced(seen)
        # The change alone, so that what stays as it was changes no bit.
        return None if new is None else output + ((new.float() - seen.float()) * gain).to(output.dtype)

    # A model with a head calls its base model, or (OPT) a part of that; a caller may start at either.
    entries = {model, model.base_model}
    handles = [attach_before(entry, note_rows) for entry in entries]
    if site.side == "input":
        handles.append(attach_before(site.module, before))
    else:
        handles.append(site.module.register_forward_hook(after_norm if site.side == "normalised" else after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_activations(value: Any, new: Tensor) -> Any:
    """Return what a module took or returned with other activations, which come first."""
    return new if isinstance(value, Tensor) else type(value)((new, *value[1:]))


@contextmanager
def computed_once(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While open, consecutive blocks compute in the first forward pass; later on the last returns the same again.

    For passes over the same tokens that differ above these blocks alone: they give what whole passes give, to the bit.
    What other threads run is computed as ever.
    """
    outputs: dict[nn.Module, Any] = {}
    here = threading.get_ident()

    def remembering(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != here:
                return forward(*args, **kwargs)
            if block not in outputs:
                output = forward(*args, **kwargs)
                seen = output if isinstance(output, Tensor) else output[0]
                # Nothing reads what the others returned: the next block does not compute either.
                kept = seen.clone() if block is blocks[-1] else seen.new_zeros(()).expand(seen.shape)
                outputs[block] = _with_activations(output, kept)
                return output
            value = outputs[block]
            # A copy: whatever runs later could write into it.
            return _with_activations(value, (value if isinstance(value, Tensor) else value[0]).clone())

        return remembered

    outer = {block: vars(block).get("forward") for block in blocks}
    for block in blocks:
        block.forward = remembering(block, block.forward)
    try:
        yield
    finally:
        for block, forward in outer.items():
            if forward is None:
                del block.forward
            else:
                block.forward = forward


class _AllRead(Exception):
    """Leaves the forward pass: every site has been read."""


@torch.inference_mode()
def capture(
    model: Any,
    tokens: Int[Tensor, "B S"] | Float[Tensor, "B C H W"],
    sites: Sequence[Site],
    device: torch.device | None = None,
) -> dict[str, Float[Tensor, "B S _"]]:
    """Return the activations at each site, by name, in the order asked; in the model's dtype.

    They are on `device`; None: where each site computes.

    Modules after the last of the sites do not run. No KV cache is kept. Of a module that runs twice in a pass the first
    run counts. Interventions that are open are seen; what other threads run is not.

    Raises:
        SiteError: A site's module does not run, or does not hold one vector a token.
    """
    by_name = {site.name: site for site in sites}
    read: dict[str, Tensor] = {}
    here = threading.get_ident()

    def reader(name: str) -> Callable[[Tensor], None]:
        def read_once(activations: Tensor) -> None:
            if name in read or threading.get_ident() != here:
                return
            is_last = len(read) + 1 == len(by_name)
            # Whatever runs later could write into the tensor in place, so it is copied. After the last, nothing runs.
            read[name] = activations if is_last else activations.clone()
            if is_last:
                raise _AllRead

        return read_once

    with ExitStack() as stack:
        for site in by_name.values():
            stack.enter_context(hooked(model, site, reader(site.name), device))
        try:
            model(tokens, **no_cache(model))
        except _AllRead:
            return {name: read[name] for name in by_name}
    missing = ", ".join(name for name in by_name if name not in read)
    raise SiteError(f"{missing}: does not run in a forward pass on tokens alone.")


def reads_images(model: Any) -> bool:
    """Return whether a transformers model takes images, (B, C, H, W), in the place of tokens."""
    return bool(model.main_input_name == "pixel_values")


def no_cache(model: Any) -> dict[str, bool]:
    """The arguments that keep a model from building a KV cache."""
    return {"use_cache": False} if hasattr(model.config.get_text_config(), "use_cache") else {}
