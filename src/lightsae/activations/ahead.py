"""Fills in turn, or made one ahead in a thread of their own while the one before is served."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class InTurn(Generic[T]):
    """Makes what is asked for when it is asked for.

    Args:
        make: Makes the one of a number.
    """

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def get(self, number: int) -> T:
        """Return the one of a number."""
        return self._make(number)

    def begin_next(self, number: int) -> None:
        """Begin with the one after `number`, whose user has let go of those before it."""

    def forget(self) -> None:
        """Wait for what is being made, and forget it."""

    def close(self) -> None:
        """End the thread."""


class Ahead(InTurn[T]):
    """Makes the next one in a thread. What fails there fails where the result is asked for, as itself.

    On a GPU the thread has a stream of its own, so that its kernels run beside those of the caller. It begins when
    the caller's stream is done with what was given out before, and gives a result when its own stream is done with it.

    Args:
        make: Makes the one of a number; called in the thread alone, one number after another.
        needed: Whether one will be asked for.
        device: Where it is made.
    """

    def __init__(self, make: Callable[[int], T], needed: Callable[[int], bool], device: torch.device) -> None:
        super().__init__(make)
        self._needed, self._device = needed, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # As many threads as in the caller's: the bits of a product may depend on it.
        self._thread = ThreadPoolExecutor(
            1, "lightsae-fills", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )
        self._next: tuple[int, Future[T]] | None = None

    def get(self, number: int) -> T:
        if self._next is None or self._next[0] != number:
            self.forget()
            self._begin(number)
        assert self._next is not None
        future, self._next = self._next[1], None
        return future.result()

    def begin_next(self, number: int) -> None:
        if self._needed(number + 1):
            self._begin(number + 1)

    def forget(self) -> None:
        if self._next is not None:
            wait([self._next[1]])
            self._next = None

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self, number: int) -> None:
        free = torch.cuda.current_stream(self._device).record_event() if self._stream is not None else None
        self._next = number, self._thread.submit(self._run, number, free)

    def _run(self, number: int, free: "torch.cuda.Event | None") -> T:
        if self._stream is None or free is None:
            return self._make(number)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            made = self._make(number)
            self._stream.synchronize()
        return made
