"""95% intervals: of a mean over prompts (Student's t), of a share (Wilson), and when two of them are apart.

The prompts are the sample: texts of one prompt are no independent draws, so they are averaged first.

Source: Wilson 1927, in the form of Newcombe 1998, as scipy computes it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

_Z = 1.959963984540054  # two-sided 95% of the normal distribution
Counts = int | float | Sequence[int | float] | NDArray[Any]  # ints spelled out for checks at run time


def wilson(successes: Counts, trials: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and upper bound of the 95% Wilson interval of a share.

    Args:
        successes: How often it happened; need not be whole.
        trials: Of how many times; if it is 0 nothing is known, and the interval is 0 to 1.

    Returns:
        Two arrays of the shape of the arguments (0-d for two numbers).

    Example:
        >>> low, high = wilson(6, 9)
        >>> round(float(low), 3), round(float(high), 3)
        (0.354, 0.879)
    """
    n = np.asarray(trials, np.float64)
    known = np.where(n > 0, n, 1.0)
    share = np.where(n > 0, np.asarray(successes, np.float64) / known, 0.0)
    spread = 2 * (known + _Z**2)
    centre = (2 * known * share + _Z**2) / spread
    half = _Z / spread * np.sqrt(4 * known * share * (1 - share) + _Z**2)
    # A share of 0 or 1 has that bound exactly; rounding would put it 1e-17 beside.
    low = np.where((n > 0) & (share > 0), centre - half, 0.0)
    high = np.where((n > 0) & (share < 1), centre + half, 1.0)
    return np.asarray(low), np.asarray(high)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; `low` and `high` are None if there is one value only."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def over(cls, values: ArrayLike) -> "Interval":
        """Return the mean and Student's t interval of values, one per prompt.

        >>> print(Interval.over([0.1, 0.2, 0.3, 0.4]))
        0.25 [0.0446, 0.455]
        >>> print(Interval.over([0.1]))
        0.1
        """
        sample = np.asarray(values, float)
        mean = float(sample.mean())
        if len(sample) < 2:
            return cls(mean, None, None)
        half = float(stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))
        return cls(mean, mean - half, mean + half)

    @classmethod
    def apart(cls, ours: ArrayLike, theirs: ArrayLike) -> "Interval":
        """Return the difference of two independent means with Welch's interval; two values or more on each side.

        >>> print(Interval.apart([0.1, 0.2, 0.3, 0.4], [0.0, 0.1, 0.1, 0.2]))
        0.15 [-0.0455, 0.346]
        """
        first, second = np.asarray(ours, float), np.asarray(theirs, float)
        interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
        return cls(float(first.mean() - second.mean()), float(interval.low), float(interval.high))

    @classmethod
    def share(cls, yes: int, of: int) -> "Interval":
        """Return a share with Wilson's interval.

        >>> print(Interval.share(8, 24))
        0.333 [0.18, 0.533]
        """
        low, high = wilson(yes, of)
        return cls(yes / of, float(low), float(high))

    @classmethod
    def difference(cls, yes: int, of: int, other_yes: int, other_of: int) -> "Interval":
        """Return the difference of two independent shares with Newcombe's interval (his method 10, of Wilson's).

        >>> print(Interval.difference(56, 70, 48, 80))
        0.2 [0.0524, 0.334]
        """
        first, second = yes / of, other_yes / other_of
        (low, other_low), (high, other_high) = wilson([yes, other_yes], [of, other_of])
        below, above = math.hypot(first - low, other_high - second), math.hypot(high - first, second - other_low)
        return cls(first - second, first - second - below, first - second + above)

    def exponentiated(self) -> "Interval":
        """Return the interval of what these are the logarithms of."""
        low, high = (None if end is None else _exp(end) for end in (self.low, self.high))
        return Interval(_exp(self.mean), low, high)

    def above(self, other: "Interval") -> bool:
        """Return whether the whole of it lies above the whole of the other."""
        return self.low is not None and other.high is not None and self.low > other.high

    def report(self) -> dict[str, float | None]:
        """Return it as JSON values."""
        return {"mean": self.mean, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
