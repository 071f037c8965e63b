"""What belongs to the forward pass under way, where several threads run one model."""

import threading
from typing import Generic, TypeVar

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
