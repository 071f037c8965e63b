"""Find where a program would wait for an accelerator, without having one.

Two ways, which see different things:
- on CPU tensors, with their values: every operation is named whose result the host has to know, or whose size depends
  on the data;
- on meta tensors, which stand for those of an accelerator: code takes the path of devices that are not the CPU, and
  each copy between host and device is seen. Copies to the host give ones.
"""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lightsae

ROOT = Path(lightsae.__file__).parent
aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense,  # item, bool, float, int
    aten._unique,
    aten._unique2,
    aten.allclose,
    aten.bincount,
    aten.equal,
    aten.histc,
    aten.is_nonzero,
    aten.masked_select,
    aten.multinomial,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.unique_dim_consecutive,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
COPIES = {aten._to_copy, aten.copy_}


class HostSyncs(TorchDispatchMode):
    """Note each operation that makes the host wait, and where it was called.

    Args:
        device: `cpu`: everything is looked at; `meta`: what runs on meta tensors, and copies to and from them.

    Attributes:
        found: `aten.nonzero.default at sae/usage.py:40`, in order.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = torch.device(device)
        self.found: list[str] = []
        self._numbers = _NumbersOfHost(self)

    def __enter__(self) -> "HostSyncs":
        self._numbers.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._numbers.__exit__(*exception)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func.overloadpacket in COPIES:
            return self._copy(func, args, kwargs)
        if isinstance(args[0], Tensor) and args[0].device == self.device and _waits(func, args, kwargs):
            self.note(func)
        return func(*args, **kwargs)

    def _copy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func.overloadpacket is aten.copy_:
            (target, source), asynchronous = args[:2], args[2:] == (True,)
            there = target.device
        else:
            source, asynchronous = args[0], kwargs.get("non_blocking", False)
            there = torch.device(kwargs.get("device") or source.device)
        if source.device != there and not asynchronous:
            self.note(func)
        if source.is_meta and there.type == "cpu":
            return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        return func(*args, **kwargs)

    def note(self, func: Any) -> None:
        """Add an operation, with the last line of the package that led to it."""
        frames = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(ROOT)]
        place = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "elsewhere"
        self.found.append(f"{func} at {place}")


class _NumbersOfHost(TorchFunctionMode):
    """Sees `torch.tensor(numbers, device=...)`, a copy that is dispatched as none."""

    def __init__(self, syncs: HostSyncs) -> None:
        super().__init__()
        self.syncs = syncs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        there = torch.device((kwargs or {}).get("device") or "cpu")
        if func in (torch.tensor, torch.as_tensor) and there == self.syncs.device and there.type != "cpu":
            self.syncs.note(f"torch.{func.__name__}")
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    packet = func.overloadpacket
    if packet in INDEXING:
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if packet is aten.repeat_interleave:
        return func._overloadname == "Tensor" and kwargs.get("output_size") is None
    return packet in WAITS
