"""What belongs to the forward pass under way, where several threads run one model."""

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

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
