"""Alarms when features become more or less frequent than they were on the calibration text.

Axes:    n features; m texts; B rows of a pass.
Source:  counts in clusters: beta-binomial variance, e.g. McCullagh & Nelder 1989, sec. 4.5; sums of them are taken as
         negative binomial with the same mean and variance. Level: Bonferroni.

Where a feature of frequency p is active on k of a text's s tokens, Var(k) = s p (1 - p) (1 + (s - 1) c): tokens of a
text are alike, to the degree c, estimated for each feature from the calibration texts (never below 0). The band of a
window of texts follows from their sizes, with the uncertainty of p itself added.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# How often a window is looked at while as many tokens pass as it holds.
_LOOKS = 4
# Back inside means inside a narrower band, of this many times the level: no flicker at the edge.
_RETURN = 100.0


@dataclass(frozen=True)
class Frequencies:
    """How often features are active on the calibration text, and how much that differs between its texts.

    Attributes:
        mean: (n,) share of the tokens.
        alike: (n,) correlation of two tokens of a text.
        error: (n,) standard error of `mean`.
        longest: Tokens of the longest text; longer ones are cut, for nothing is known about them.
    """

    mean: Floats
    alike: Floats
    error: Floats
    longest: int

    @classmethod
    def measure(cls, active: Ints, sizes: Ints) -> "Frequencies":
        """Estimate them.

        Args:
            active: (m, n) tokens of each text on which each feature is active.
            sizes: (m,) tokens of each text; two texts or more.
        """
        sizes = sizes.astype(np.float64)
        m, total = len(sizes), sizes.sum()
        # Half a firing more: one that was never seen is rare, not impossible.
        mean = (active.sum(0) + 0.5) / (total + 1)
        squares = m / (m - 1) * ((active - sizes[:, None] * mean) ** 2).sum(0)
        spread = mean * (1 - mean)
        pairs = max(1.0, float((sizes * (sizes - 1)).sum()))
        alike = np.clip((squares / spread - total) / pairs, 0.0, 1.0)
        error = np.sqrt(np.maximum(squares, total * spread)) / total
        return cls(mean, alike, error, int(sizes.max()))

    def band(self, sizes: Floats, level: float) -> tuple[Floats, Floats]:
        """Return the frequencies between which a window of texts lies, but for a probability of `level` per feature.

        Args:
            sizes: Tokens of each text of the window.
            level: Two-sided.
        """
        total = sizes.sum()
        mean = total * self.mean
        spread = self.mean * (1 - self.mean)
        variance = spread * (total + float((sizes * (sizes - 1)).sum()) * self.alike) + (total * self.error) ** 2
        # Never below Poisson's: the two differ only for features that are active nearly everywhere.
        variance = np.maximum(variance, mean * (1 + 1e-6))
        size, chance = mean**2 / (variance - mean), mean / variance
        low = stats.nbinom.ppf(level / 2, size, chance)
        high = stats.nbinom.isf(level / 2, size, chance)
        return np.asarray(low / total), np.minimum(high / total, 1.0)


@dataclass(frozen=True)
class Change:
    """A feature left its band or came back.

    Attributes:
        index: Which of the n features.
        left: True if it left its band, False if it returned.
        above: On which side of the band it is, or was.
        frequency, low, high: Its frequency in the window, and the band.
        tokens, texts: Size of the window.
    """

    index: int
    left: bool
    above: bool
    frequency: float
    low: float
    high: float
    tokens: int
    texts: int


@dataclass
class DriftWatch:
    """A sliding window of texts.

    Attributes:
        expected: What is normal.
        window: Tokens; the window holds the last whole texts with at least as many.
        level: Probability of any false alarm, of any feature, while `horizon` windows of tokens pass.
        horizon: See `level`.
    """

    expected: Frequencies
    window: int
    level: float
    horizon: int
    low: Floats | None = None
    high: Floats | None = None
    frequency: Floats | None = None
    _texts: deque[tuple[int, Ints]] = field(default_factory=deque)
    _tokens: int = 0
    _unseen: int = 0

    def __post_init__(self) -> None:
        n = len(self.expected.mean)
        self._active = np.zeros(n, np.int64)
        self.outside = np.zeros(n, np.int64)  # 1 above, -1 below
        self._each = self.level / (n * self.horizon * _LOOKS)

    def add(self, tokens: int, active: Ints) -> list[Change]:
        """Take a text, and return what changed.

        Args:
            tokens: Of the text.
            active: (n,) on how many of them each feature is active.
        """
        if tokens == 0:
            return []
        self._texts.append((tokens, active))
        self._tokens += tokens
        self._unseen += tokens
        self._active += active
        while self._tokens - self._texts[0][0] >= self.window:
            gone, fewer = self._texts.popleft()
            self._tokens -= gone
            self._active -= fewer
        if self._tokens < self.window or self._unseen < self.window / _LOOKS:
            return []
        self._unseen = 0
        return self._look()

    def last_look(self, index: int) -> dict[str, Any]:
        """Return what was seen of a feature at the last look, by the names of `FeatureSummary`."""
        side = {"drift": int(self.outside[index])}
        if self.frequency is None or self.low is None or self.high is None:
            return side
        frequency, low, high = (float(values[index]) for values in (self.frequency, self.low, self.high))
        return {"window_frequency": frequency, "low": low, "high": high, **side}

    def _look(self) -> list[Change]:
        sizes = np.array([tokens for tokens, _ in self._texts], np.float64)
        frequency = self._active / self._tokens
        low, high = self.expected.band(sizes, self._each)
        inner_low, inner_high = self.expected.band(sizes, min(0.5, self._each * _RETURN))
        self.low, self.high, self.frequency = low, high, frequency
        side = (frequency > high).astype(np.int64) - (frequency < low)
        inside = (frequency >= inner_low) & (frequency <= inner_high)
        before = self.outside
        # Between the two bands all stays as it was; from one side to the other is another alarm.
        self.outside = np.where(side != 0, side, np.where(inside, 0, before))
        changes = []
        for i in np.flatnonzero(self.outside != before).tolist():
            left = bool(self.outside[i] != 0)
            above = bool((self.outside if left else before)[i] > 0)
            seen = (float(frequency[i]), float(low[i]), float(high[i]))
            changes.append(Change(i, left, above, *seen, self._tokens, len(sizes)))
        return changes


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
