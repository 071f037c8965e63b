"""How far two recipes are apart in a figure, against two kinds of noise: another seed, and another text.

Axes:    n SAEs of a recipe, K deviations (see `lightsae.analysis.evaluate.spread`).
Sources: Welch 1947, Biometrika 34; degrees of freedom of a sum of variances: Satterthwaite 1946, Biometrics Bulletin 2.

All SAEs are read on the same text, so that what it does to both recipes cancels: the text's noise is that of the
difference. SAEs of one recipe differ by their seed, and seeds are the sample. The two variances add up; what a text
does to single SAEs is in both, so that the sum errs on the large side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.special import ndtr, stdtr, stdtrit

POWER = 0.8
# Comparisons that are imagined to find how often a difference would be seen.
_IMAGINED = 2000
_ROUNDING = 1e-10

# `both`: each recipe has several SAEs. `assumed`: a recipe with one SAE is taken to vary as those with several do.
# `none`: no recipe has several, and the SAEs themselves are compared.
Seeds = Literal["both", "assumed", "none"]


@dataclass(frozen=True)
class Readings:
    """One figure of all SAEs of a recipe, on one text.

    Attributes:
        values: (n,) one per SAE.
        deviations: (n, K) by the text; None where its noise is not known.
        documents: Effective number of documents.
    """

    values: NDArray[np.float64]
    deviations: NDArray[np.float64] | None
    documents: float

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def variance(self) -> float:
        """Between seeds, of one SAE."""
        return float(self.values.var(ddof=1))

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Difference:
    """The first recipe's mean less the second's.

    Attributes:
        value: In the figure's unit.
        parts: Estimated variances that add up to its own, each with degrees of freedom; none where no noise is known.
        seeds: Whose seeds are in them.
        text: Whether the text's noise is.
    """

    value: float
    parts: tuple[tuple[float, float], ...]
    seeds: Seeds
    text: bool

    @cached_property
    def error(self) -> float | None:
        """Standard error; None where no noise is known."""
        return float(np.sqrt(sum(part for part, _ in self.parts))) if self.parts else None

    @cached_property
    def freedom(self) -> float:
        """Degrees of freedom of the error."""
        variances, freedoms = np.array(self.parts).T
        return float(_freedom(variances, freedoms))

    @cached_property
    def p(self) -> float:
        """Two-sided p-value of «there is no difference»; 1 where no noise is known."""
        return 1.0 if self.error is None else float(2 * stdtr(self.freedom, -abs(self.value) / self.error))

    def interval(self, level: float = 0.05) -> tuple[float | None, float | None]:
        """Return where the true difference lies, with probability 1 - level."""
        if self.error is None:
            return None, None
        half = float(stdtrit(self.freedom, 1 - level / 2)) * self.error
        return self.value - half, self.value + half

    def smallest(self, level: float) -> float | None:
        """Return the smallest true difference that a test at this level finds in 80% of the cases.

        The variances are estimates. What a comparison like this would estimate if they were the true ones is drawn:
        from it follows how often a difference is found, and by how much an estimate falls short in half of the cases,
        for which the difference is made larger.
        """
        if self.error is None:
            return None
        variances, freedoms = np.array(self.parts).T
        draws = np.random.default_rng(0).chisquare(freedoms, (_IMAGINED, len(freedoms))) / freedoms * variances
        errors = np.sqrt(draws.sum(1)) / self.error
        limits = errors * stdtrit(_freedom(draws, freedoms), 1 - level / 2)

        def missing(size: float) -> float:
            return float((ndtr(size - limits) + ndtr(-size - limits)).mean()) - POWER

        size = optimize.brentq(missing, 0.0, 5 + limits.max())
        return float(size / np.median(errors)) * self.error


def difference(first: Readings, second: Readings, others: Sequence[Readings] = ()) -> Difference:
    """Return the difference of two recipes with its noise.

    Args:
        first: A figure of one, on a text.
        second: The same of the other, on the same text.
        others: Further recipes. Where a recipe has a single SAE, the variance between seeds is taken from all that have
            several.
    """
    value = first.mean - second.mean
    parts = []
    if text := first.deviations is not None and second.deviations is not None:
        apart = first.deviations.mean(0) - second.deviations.mean(0)
        parts.append((float(apart @ apart), min(first.documents, second.documents) - 1))
    repeated = [one for one in (first, second, *others) if len(one) > 1]
    freedom_of_all = sum(len(one) - 1 for one in repeated)
    seeds: Seeds = "none"
    if repeated:
        seeds = "both" if len(first) > 1 and len(second) > 1 else "assumed"
        alone = (len(first) == 1) + (len(second) == 1)
        # Each recipe's variance, times how often it counts.
        for one in repeated:
            times = alone * (len(one) - 1) / freedom_of_all + sum(one is side for side in (first, second)) / len(one)
            parts.append((times * one.variance, len(one) - 1))
    # Equal numbers throughout tell of no noise: nothing says how much there is. Rounding is none.
    least = (_ROUNDING * max(np.abs(first.values).max(), np.abs(second.values).max())) ** 2
    seen = tuple((variance, float(freedom)) for variance, freedom in parts if variance > least)
    return Difference(value, seen if np.isfinite(value) else (), seeds, text)


def _freedom(variances: NDArray[np.float64], freedoms: NDArray[np.float64]) -> Any:
    """Return the degrees of freedom of sums of variances (Satterthwaite): a number, or one for each row."""
    return variances.sum(-1) ** 2 / (variances**2 / freedoms).sum(-1)
