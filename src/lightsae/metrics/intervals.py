"""95% intervals: of a mean over prompts (Student's t), of a share (Wilson), and when two of them are apart.

Axes:    m documents.
Source:  Wilson 1927, in the form of Newcombe 1998, as scipy computes it. Design effect: Kish 1965, ch. 5 and 11.7;
         intervals with an effective number and t quantiles: Korn & Graubard 1998; jackknife over clusters: Wolter 2007,
         ch. 4; degrees of freedom of a variance, from its own: Satterthwaite 1946.

The prompts are the sample: texts of one prompt are no independent draws, so they are averaged first. Tokens of a
document are none either: n of them tell less than n independent ones, which `clustered_share` accounts for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import ndtri, stdtrit

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
class Share:
    """How often something happened on tokens of documents; numbers, or arrays of one shape.

    Attributes:
        times, tokens: It happened on so many, of how many.
        effective: Independent tokens that would tell as much.
        freedom: Degrees of freedom of the variance that `effective` comes from; infinite where it comes from none.
    """

    times: Any
    tokens: Any
    effective: Any
    freedom: Any

    @property
    def rate(self) -> Any:
        """Share of the tokens; 0 of none."""
        return self.times / np.maximum(self.tokens, 1)

    @property
    def trusted(self) -> Any:
        """What `effective` counts as in the interval: less, for it is estimated itself."""
        return self.trusted_at(0.975)

    def trusted_at(self, quantile: float) -> Any:
        """Return the same for an interval that ends at another quantile."""
        return self.effective * (ndtri(quantile) / _student_quantile(quantile, self.freedom)) ** 2

    def interval(self) -> tuple[Any, Any]:
        """Return the 95% interval of the rate: Wilson's with the effective number and Student's t.

        >>> low, high = clustered_share([0, 0, 0, 40], [200, 200, 200, 200]).interval()
        >>> round(float(low), 4), round(float(high), 4)
        (0.004, 0.4087)
        """
        return wilson(self.rate * self.trusted, self.trusted)


def clustered_share(times: Counts, sizes: Counts) -> Share:
    """Return a share among tokens whose documents are the sample.

    The effective number of tokens follows from the variance of the rate between documents (ratio estimator; the
    jackknife that leaves one document out at a time). Where it happened never or always, nothing says how alike the
    tokens of a document are: each document counts once (fewer where a few hold most tokens: Kish's effective number).

    A variance that hangs on few documents, as that of a rare feature does, is itself uncertain: the interval takes the
    t quantile with 2 S^2 / (sum d^4 - S^2 / m) degrees of freedom, d the residuals and S the sum of d^2; that is about
    twice the documents in which a rare feature fires, and never more than m - 1.

    Measured (`tests/unit/metrics/test_clustered_shares.py`): 20 to 100 documents, features in 2% to 20% of them or in
    all: 94% to 98% of the intervals hold the true share. Where few documents have bursts that differ wildly, 92%.

    Args:
        times: (..., m) on how many tokens of each document it happened.
        sizes: (..., m) tokens of each document; documents without any do not count.

    Example:
        >>> share = clustered_share([0, 0, 0, 40], [200, 200, 200, 200])
        >>> float(share.rate), round(share.effective, 1)
        (0.05, 19.0)
        >>> clustered_share([0, 0, 0], [200, 200, 200]).effective
        3.0
    """
    k, n = np.broadcast_arrays(np.asarray(times, np.float64), np.asarray(sizes, np.float64))
    total, tokens, documents = k.sum(-1), n.sum(-1), (n > 0).sum(-1)
    by_document = tokens**2 / np.maximum((n**2).sum(-1), 1)
    rate = total / np.maximum(tokens, 1)
    # A document that is all there is has no residual.
    others = np.maximum(1 - n / np.maximum(tokens, 1)[..., None], 1e-9)
    squares = ((k - n * rate[..., None]) / others) ** 2
    between = squares.sum(-1)
    variance = between * (documents - 1) / np.maximum(documents, 1)
    known = (total > 0) & (total < tokens) & (documents > 1)
    independent = rate * (1 - rate) * tokens**2 / np.maximum(tokens - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Never worth more than independent ones: that would be luck.
        effective = np.where(known, tokens * np.minimum(independent / variance, 1), by_document)
        excess = (squares**2).sum(-1) - between**2 / documents
        freedom = np.minimum(np.where(excess > 0, 2 * between**2 / excess, np.inf), documents - 1)
    freedom = np.where(known, freedom, np.inf)
    return Share(*(part.item() if part.ndim == 0 else part for part in (total, tokens, effective, freedom)))


def share_of(happened: NDArray[np.bool_], documents: NDArray[Any]) -> Share:
    """Return how often something happened, and what the tokens are worth.

    Args:
        happened: (T,) on which tokens.
        documents: (T,) of which document each is.
    """
    _, group = np.unique(documents, return_inverse=True)
    return clustered_share(np.bincount(group, weights=happened), np.bincount(group))


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


def _student_quantile(quantile: float, freedom: Any) -> Any:
    """Return Student's quantile; infinite degrees of freedom give the normal one.

    `stats.t.ppf` is the same function behind checks of half a millisecond, and rules ask a hundred thousand times.

    >>> [round(float(_student_quantile(0.975, freedom)), 3) for freedom in (3.0, np.inf)]
    [3.182, 1.96]
    """
    known = np.isfinite(freedom)
    return np.where(known, stdtrit(np.where(known, freedom, 1.0), quantile), ndtri(quantile))
