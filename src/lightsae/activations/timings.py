"""Where the time of a run goes."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Timings:
    """Sums the seconds spent in named stretches.

    On a GPU a stretch is measured by events on its stream, read only when the totals are asked for: measuring never
    makes the host wait. Elsewhere it is the wall clock's. Several threads may measure at once.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # Modules that hold one are copied, by weight averaging for example; a lock cannot be.
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    @contextmanager
    def measure(self, name: str, device: torch.device | None = None) -> Iterator[None]:
        """Add the time of the block to `name`. `device`: where its work runs; None for the host."""
        if device is not None and device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(torch.cuda.current_stream(device))
            try:
                yield
            finally:
                end.record(torch.cuda.current_stream(device))
                with self._lock:
                    self._events.append((name, start, end))
        else:
            began = time.perf_counter()
            try:
                yield
            finally:
                with self._lock:
                    self._seconds[name] += time.perf_counter() - began

    def totals(self) -> dict[str, float]:
        """Return the seconds so far, by name. Waits for the last stretch to end."""
        with self._lock:
            events, self._events = self._events, []
        for _, _, end in events:
            end.synchronize()
        with self._lock:
            for name, start, end in events:
                self._seconds[name] += start.elapsed_time(end) / 1000
            return dict(self._seconds)
