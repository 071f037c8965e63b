"""Means over prompts with their 95% intervals, and when two of them are apart.

The prompts are the sample: texts of one prompt are no independent draws, so they are averaged first.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; `low` and `high` are None where one prompt alone gives none."""

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
        given = np.asarray(values, float)
        mean = float(given.mean())
        if len(given) < 2:
            return cls(mean, None, None)
        half = float(stats.t.ppf(0.975, len(given) - 1) * given.std(ddof=1) / np.sqrt(len(given)))
        return cls(mean, mean - half, mean + half)

    @classmethod
    def share(cls, yes: int, of: int) -> "Interval":
        """Return a share with Wilson's interval.

        >>> print(Interval.share(8, 24))
        0.333 [0.18, 0.533]
        """
        found = stats.binomtest(yes, of).proportion_ci(0.95, method="wilson")
        return cls(yes / of, float(found.low), float(found.high))

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
