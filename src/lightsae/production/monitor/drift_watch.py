"""Alarms when features become more or less frequent than they were on the calibration text.

Axes:    n features; m texts; B rows of a pass.
Source:  counts in clusters: beta-binomial variance, e.g. McCullagh & Nelder 1989, sec. 4.5; sums of them are taken as
         negative binomial with the same mean and variance. Level: Bonferroni.

Where a feature of frequency p is active on k of a text's s tokens, Var(k) = s p (1 - p) (1 + (s - 1) c): tokens of a
text are alike, to the degree c, estimated for each feature from the calibration texts (never below 0). The band of a
window of texts follows from their sizes, with the uncertainty of p itself added.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lightsae.production.monitor.events import Alarm

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


class DriftWatch:
    """A sliding window of texts.

    Args:
        features: Number and label of each feature.
        expected: What is normal.
        window: Tokens; the window holds the last whole texts with at least as many.
        level: Probability of any false alarm, of any feature, while `horizon` windows of tokens pass.
        horizon: See `level`.
    """

    def __init__(
        self,
        features: Sequence[tuple[int, str | None]],
        expected: Frequencies,
        window: int,
        level: float,
        horizon: int,
    ) -> None:
        n = len(features)
        self.features, self.expected, self.window = features, expected, window
        self._level = level / (n * horizon * _LOOKS)
        self._texts: deque[tuple[int, Ints]] = deque()
        self._tokens, self._unseen = 0, 0
        self._active = np.zeros(n, np.int64)
        self._outside = np.zeros(n, np.int64)  # 1 above, -1 below
        self._seen: Floats | None = None  # (3, n): frequency, low and high at the last look

    def add(self, tokens: int, active: Ints) -> list[Alarm]:
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
        seen = () if self._seen is None else self._seen[:, index].tolist()
        return {
            "drift": int(self._outside[index]),
            **dict(zip(("window_frequency", "low", "high"), seen, strict=False)),
        }

    def _look(self) -> list[Alarm]:
        sizes = np.array([tokens for tokens, _ in self._texts], np.float64)
        frequency = self._active / self._tokens
        low, high = self.expected.band(sizes, self._level)
        inner_low, inner_high = self.expected.band(sizes, min(0.5, self._level * _RETURN))
        self._seen = np.stack([frequency, low, high])
        side = (frequency > high).astype(np.int64) - (frequency < low)
        inside = (frequency >= inner_low) & (frequency <= inner_high)
        before = self._outside
        # Between the two bands all stays as it was; from one side to the other is another alarm.
        self._outside = np.where(side != 0, side, np.where(inside, 0, before))
        return [self._alarm(i, int(before[i])) for i in np.flatnonzero(self._outside != before).tolist()]

    def _alarm(self, index: int, before: int) -> Alarm:
        assert self._seen is not None
        now = int(self._outside[index])
        number, label = self.features[index]
        frequency, low, high = self._seen[:, index].tolist()
        return Alarm(
            time=time.time(),
            feature=number,
            label=label,
            state="left" if now else "returned",
            side="above" if (now or before) > 0 else "below",
            frequency=frequency,
            low=low,
            high=high,
            expected=float(self.expected.mean[index]),
            tokens=self._tokens,
            texts=len(self._texts),
        )


class OpenTexts:
    """Counts of the texts that run now: one per row; or one for all that runs while a request is open.

    Args:
        n: Features.
        longest: Tokens at which a text is cut, and its rest begins a new one; None: never.
        finished: Called with the tokens of a text, and on how many of them each feature is active, (n,).
    """

    def __init__(self, n: int, longest: int | None, finished: Callable[[int, Ints], None]) -> None:
        self._longest, self._finished = longest, finished
        # (texts, 1 + n): tokens, and those with each feature active; of the rows, and of each open request.
        self._rows: Ints = np.zeros((0, 1 + n), np.int64)
        self._requests: list[Ints] = []
        self._next = 0

    def first_of(self, rows: int) -> int:
        """Return the running number of the text in row 0 of a pass with so many rows."""
        if rows != len(self._rows):
            self.end_rows()
            self._rows = np.zeros((rows, self._rows.shape[1]), np.int64)
        return self._next

    def add(self, sizes: Ints, active: Ints) -> None:
        """Take the counts of a pass, (B,) and (B, n); `first_of` was called before."""
        counts = np.column_stack([sizes, active])
        texts = self._requests[-1] if self._requests else self._rows
        texts += counts.sum(0) if self._requests else counts
        if self._longest is not None:
            self._finish(texts, self._longest)

    def end_rows(self) -> None:
        """The texts in the rows are over."""
        self._finish(self._rows)
        self._next += len(self._rows)
        self._rows = self._rows[:0]

    @contextmanager
    def request(self) -> Iterator[None]:
        """While open, all counts as one text."""
        self._requests.append(np.zeros((1, self._rows.shape[1]), np.int64))
        try:
            yield
        finally:
            self._finish(self._requests.pop())

    def _finish(self, texts: Ints, at_least: int = 1) -> None:
        over = texts[:, 0] >= at_least
        # Indexing by a mask copies.
        for text in texts[over]:
            self._finished(int(text[0]), text[1:])
        texts[over] = 0
