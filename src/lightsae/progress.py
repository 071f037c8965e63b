"""How long work reports where it is, without knowing who listens, and the timing of lines in a log file."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

# Most seconds between two lines of progress if no terminal is attached.
LINE_SECONDS = 30.0
# The share of them after which the work itself writes a line, so that the thread has to only if the work hangs.
_OWN_SHARE = 2 / 3


@runtime_checkable
class Progress(Protocol):
    """Receives the stages of a long piece of work."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Open a stage of `total` steps; it gives a function to call with the number of steps that are done."""


class NullProgress:
    """Ignores every stage."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """See `Progress.stage`."""
        yield lambda done: None


class Heartbeat:
    """Calls a function at least every `seconds` while it is open.

    The work asks `due` whenever it can and calls `beat`. If it does not come round in time, in a long fill for example,
    a thread calls the function; it then runs beside the work and must only read what is safe to read.

    Args:
        write: The function, which writes a line.
        seconds: Most seconds between two calls.
        clock: Gives seconds.
    """

    def __init__(
        self, write: Callable[[], None], seconds: float = LINE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._seconds, self._clock = write, seconds, clock
        self._lock, self._end = threading.Lock(), threading.Event()
        self._last = clock()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def due(self) -> bool:
        """Whether the work should call `beat` now."""
        return self._clock() - self._last >= _OWN_SHARE * self._seconds

    def beat(self) -> None:
        """Call the function."""
        with self._lock:
            self._last = self._clock()
            self._write()

    def _watch(self) -> None:
        # As long as the last line is young, wait for it to age.
        while not self._end.wait(max(self._seconds - (self._clock() - self._last), 0.01)):
            if self._clock() - self._last >= self._seconds:
                self.beat()
