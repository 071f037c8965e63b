"""Several threads at once."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def together(work: Callable[[int], T], threads: int = 6) -> list[T]:
    """Return `work(0)`, `work(1)`, ... of threads that run at once and take turns often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, range(threads)))
    finally:
        sys.setswitchinterval(interval)
