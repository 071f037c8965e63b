"""Texts under way: gathered pass by pass until they are over.

Axes:  B rows of a pass, n features.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class OpenTexts:
    """Counts of the texts that run now: one a row; or one for all that runs while a request is open.

    Args:
        n: Features.
        longest: Tokens at which a text is cut, and its rest begins a new one; None: never.
        finished: Called with the tokens of a text, and on how many of them each feature is active, (n,).
    """

    def __init__(self, n: int, longest: int | None, finished: Callable[[int, Ints], None]) -> None:
        self._n, self._longest, self._finished = n, longest, finished
        self._sizes: Ints = np.zeros(0, np.int64)
        self._active: Ints = np.zeros((0, n), np.int64)
        self._rows = 0
        self._next = 0
        self._requests: list[tuple[int, Ints]] = []

    def first_of(self, rows: int) -> int:
        """Return the running number of the text in row 0 of a pass with so many rows."""
        if rows != self._rows:
            self.end_rows()
            self._rows = rows
            self._sizes, self._active = np.zeros(rows, np.int64), np.zeros((rows, self._n), np.int64)
        return self._next

    def add(self, sizes: Ints, active: Ints) -> None:
        """Take the counts of a pass, (B,) and (B, n); `first_of` was called before."""
        if self._requests:
            tokens, before = self._requests[-1]
            self._requests[-1] = (tokens + int(sizes.sum()), before + active.sum(0))
            if self._longest is not None and self._requests[-1][0] >= self._longest:
                self.end_request()
                self.begin_request()
            return
        self._sizes += sizes
        self._active += active
        if self._longest is not None:
            for row in np.flatnonzero(self._sizes >= self._longest):
                self._finish(row)

    def end_rows(self) -> None:
        """The texts in the rows are over."""
        for row in np.flatnonzero(self._sizes):
            self._finish(row)
        self._next += self._rows
        self._rows, self._sizes, self._active = 0, self._sizes[:0], self._active[:0]

    def begin_request(self) -> None:
        """From here on all counts as one text."""
        self._requests.append((0, np.zeros(self._n, np.int64)))

    def end_request(self) -> None:
        """What `begin_request` began is over."""
        tokens, active = self._requests.pop()
        if tokens:
            self._finished(tokens, active)

    def _finish(self, row: int | np.int64) -> None:
        self._finished(int(self._sizes[row]), self._active[row].copy())
        self._sizes[row], self._active[row] = 0, 0
