"""Alarms when features become more or less frequent than they were on the calibration text.

Axes:    n features; m texts; B rows of a pass.
Source:  permutation of exchangeable texts; sums of texts drawn without replacement exceed a value no more often, in
         Chernoff's bound, than with replacement: Hoeffding 1963, sec. 6. Level: Bonferroni.

Texts are the sample, not tokens, and nothing is assumed of how a feature is spread over them: if the texts of the
window are like those of the calibration, any of both could as well be in the window. So the window's count has to
exceed what as many texts, drawn from both together, reach with the probability of the level. However rare a feature is
and however its bursts differ, false alarms are no more frequent than asked. That a feature has vanished which is too
rare for the window gives no alarm: its band begins at 0.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.production.monitor.events import Alarm

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# How often a window is looked at while as many tokens pass as it holds.
_LOOKS = 4
# Back inside means inside a narrower band, of this many times the level: no flicker at the edge.
_RETURN = 100.0
# See `TextCounts.bands`: any of them gives a bound.
_TILTS = 2.0 ** np.arange(-5, 2, 0.5)


@dataclass(frozen=True)
class TextCounts:
    """On how many tokens of each calibration text features are active.

    Attributes:
        active: (m, n) tokens of each text on which each feature is active.
        sizes: (m,) tokens of each text.
    """

    active: Ints
    sizes: Ints

    @property
    def mean(self) -> Floats:
        """(n,) share of all tokens."""
        mean: Floats = self.active.sum(0) / self.sizes.sum()
        return mean

    @property
    def longest(self) -> int:
        """Tokens of the longest text; longer ones are cut, for nothing is known about them."""
        return int(self.sizes.max())

    def bands(self, active: Ints, sizes: Ints, levels: Sequence[float]) -> Floats:
        """Return the frequencies between which a window of texts lies, but for a probability of a level per feature.

        Args:
            active: Of the texts of the window, as the attribute.
            sizes: Likewise.
            levels: Two-sided.

        Returns:
            Lower and upper ends by level, (levels, 2, n).
        """
        everything, tokens = np.concatenate([self.active, active]), np.concatenate([self.sizes, sizes])
        mean, window = everything.sum(0) / tokens.sum(), len(sizes)
        apart = everything - tokens[:, None] * mean
        # P(sum > (window * log E exp(tilt * x) + rarity) / tilt) <= exp(-rarity), whatever the tilt. The best one of
        # a normal distribution is 1; of a skewed one it is smaller.
        rarity = np.log(2 / np.asarray(levels, np.float64))[:, None]
        deviation = np.sqrt(np.maximum((apart**2).mean(0), 1e-12))
        sums = np.full((len(levels), 2, apart.shape[1]), np.inf)
        for tilt in _TILTS * np.sqrt(2 * rarity.max() / window):
            for side, sign in enumerate((-1, 1)):
                exponent = apart * (sign * tilt / deviation)
                cumulant = np.log(np.exp(exponent - exponent.max(0)).mean(0)) + exponent.max(0)
                reached = (window * cumulant + rarity) * deviation / tilt
                sums[:, side] = np.minimum(sums[:, side], reached)
        ends: Floats = mean + sums * np.array([-1.0, 1.0])[:, None] / sizes.sum()
        return ends.clip(0.0, 1.0)


class DriftWatch:
    """A sliding window of texts.

    Args:
        features: Number and label of each feature.
        expected: What is normal: the calibration texts.
        window: Tokens; the window holds the last whole texts with at least as many.
        level: Probability of any false alarm, of any feature, while `horizon` windows of tokens pass.
        horizon: See `level`.
        roles: Those whose tokens are watched; None: all. Alarms name them.
    """

    def __init__(
        self,
        features: Sequence[tuple[int, str | None]],
        expected: TextCounts,
        window: int,
        level: float,
        horizon: int,
        roles: list[str] | None = None,
    ) -> None:
        n = len(features)
        self.features, self.expected, self.window, self._roles = features, expected, window, roles
        self._level = level / (n * horizon * _LOOKS)
        self._mean = expected.mean
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
        sizes, active = (np.array(part) for part in zip(*self._texts, strict=True))
        frequency = self._active / self._tokens
        levels = (self._level, min(0.5, self._level * _RETURN))
        (low, high), (inner_low, inner_high) = self.expected.bands(active, sizes, levels)
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
            expected=float(self._mean[index]),
            tokens=self._tokens,
            texts=len(self._texts),
            roles=self._roles,
        )


class OpenTexts:
    """Counts of the texts that run now: one per row; or one for all that runs while a request is open.

    Args:
        n: Features.
        longest: Tokens at which a text is cut, and its rest begins a new one; None: never.
        number: Gives out so many running numbers of texts, and returns the first.
        finished: Called with the tokens of a text, and on how many of them each feature is active, (n,).
    """

    def __init__(
        self, n: int, longest: int | None, number: Callable[[int], int], finished: Callable[[int, Ints], None]
    ) -> None:
        self._longest, self._number, self._finished = longest, number, finished
        # (texts, 1 + n): tokens, and those with each feature active; of the rows, and of each open request.
        self._rows: Ints = np.zeros((0, 1 + n), np.int64)
        self._requests: list[Ints] = []
        self._first = 0

    def first_of(self, rows: int) -> int:
        """Return the running number of the text in row 0 of a pass with so many rows."""
        if rows != len(self._rows):
            self.end_rows()
            self._rows = np.zeros((rows, self._rows.shape[1]), np.int64)
            self._first = self._number(rows)
        return self._first

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
        self._rows = self._rows[:0]

    def begin_request(self) -> None:
        """From here to its end, all counts as one text."""
        self._requests.append(np.zeros((1, self._rows.shape[1]), np.int64))

    def end_request(self) -> None:
        """End the request that began last."""
        self._finish(self._requests.pop())

    def _finish(self, texts: Ints, at_least: int = 1) -> None:
        over = texts[:, 0] >= at_least
        # Indexing by a mask copies.
        for text in texts[over]:
            self._finished(int(text[0]), text[1:])
        texts[over] = 0
