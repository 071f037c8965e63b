"""Alarms when features become more or less frequent than they were on the calibration text.

Axes:    n features; m texts.
Source:  counts in clusters: beta-binomial variance, e.g. McCullagh & Nelder 1989, sec. 4.5; sums of them are taken as
         negative binomial with the same mean and variance. Level: Bonferroni.

Where a feature of frequency p is active on k of a text's s tokens, Var(k) = s p (1 - p) (1 + (s - 1) c): tokens of a
text are alike, to the degree c, estimated for each feature from the calibration texts (never below 0). The band of a
window of texts follows from their sizes, with the uncertainty of p itself added.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
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
    def measure(cls, active: NDArray[np.int64], sizes: NDArray[np.int64]) -> "Frequencies":
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
        """Return the frequencies between which a window of texts lies, but for a probability of `level` a feature.

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
        index: Of the n features.
        left: Or else it returned.
        above: Of the band; else below.
        frequency, low, high: In the window.
        tokens, texts: Of the window.
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
    _texts: deque[tuple[int, NDArray[np.int64]]] = field(default_factory=deque)
    _tokens: int = 0
    _unseen: int = 0

    def __post_init__(self) -> None:
        n = len(self.expected.mean)
        self._active = np.zeros(n, np.int64)
        self.outside = np.zeros(n, np.int64)  # 1 above, -1 below
        self._each = self.level / (n * self.horizon * _LOOKS)

    def add(self, tokens: int, active: NDArray[np.int64]) -> list[Change]:
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

    def _look(self) -> list[Change]:
        sizes = np.array([tokens for tokens, _ in self._texts], np.float64)
        found = self._active / self._tokens
        low, high = self.expected.band(sizes, self._each)
        inner_low, inner_high = self.expected.band(sizes, min(0.5, self._each * _RETURN))
        self.low, self.high, self.frequency = low, high, found
        side = (found > high).astype(np.int64) - (found < low)
        inside = (found >= inner_low) & (found <= inner_high)
        before = self.outside
        # Between the two bands all stays as it was; from one side to the other is another alarm.
        self.outside = np.where(side != 0, side, np.where(inside, 0, before))
        changes = []
        for i in np.flatnonzero(self.outside != before).tolist():
            left = self.outside[i] != 0
            changes.append(
                Change(
                    index=i,
                    left=bool(left),
                    above=bool((self.outside if left else before)[i] > 0),
                    frequency=float(found[i]),
                    low=float(low[i]),
                    high=float(high[i]),
                    tokens=self._tokens,
                    texts=len(sizes),
                )
            )
        return changes
