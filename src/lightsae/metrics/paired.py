"""Exact paired tests: does each thing do more in its own place than others do in that place?

Axes: N sets (a feature of a panel with the others in its place), n pairs (prompts), K others.

All are one-sided. Nothing is assumed of how values are distributed: under the null hypothesis what was called «own» is
as good as drawn, and the p-value is the share of the draws that give as much.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

# Sums over so many pairs are all counted: two tables of 2^12.
_COUNTED = 24
_DRAWS = 9999
_ULP = 1e-9  # relative; sums that differ by rounding are ties


def matched_sets(own: Bool[NDArray[np.bool_], " N"], others: Sequence[Bool[NDArray[np.bool_], " _"]]) -> float:
    """Return the p-value of «it happens more often in its own place than with others there».

    A set is one feature's own outcome and those of K others in its place. Under the null hypothesis each of the 1 + K
    was as likely to be the own one, so that the own ones that happened are a sum of independent draws, each with the
    share of its set. With K = 1 it is McNemar's exact test.

    Example:
        Seven sets in which the own one happened and not the other, one the other way round, four alike.

        >>> own = np.array([True] * 7 + [False] + [True] * 4)
        >>> other = [np.array([False])] * 7 + [np.array([True])] * 5
        >>> round(matched_sets(own, other), 4)  # (8 + 1) / 2^8
        0.0352

    Source:
        McNemar 1947, Psychometrika 12; for several controls: Miettinen 1969, Biometrics 25, 339-355.
    """
    # distribution[t]: probability that t of the own ones happen.
    distribution = np.ones(1)
    for mine, rest in zip(own, others, strict=True):
        share = (int(mine) + int(rest.sum())) / (1 + len(rest))
        distribution = np.convolve(distribution, (1 - share, share))
    return min(1.0, float(distribution[int(own.sum()) :].sum()))


def sign_flips(differences: Float[NDArray[np.float64], " n"], *, seed: int = 0) -> float:
    """Return the p-value of «the mean is above 0» of paired differences.

    Under the null hypothesis each difference was as likely to have the other sign. Up to 24 pairs all 2^n ways are
    counted; of more, 9,999 are drawn and the one that was found is one of them, which is exact too.

    Example:
        >>> sign_flips(np.array([0.1, 0.3, 0.2, 0.4, -0.1]))  # of 32 ways, 3 give as much
        0.09375

    Source:
        Fisher 1935, The Design of Experiments, sec. 21; of draws: Phipson and Smyth 2010, arXiv:1603.05766.
    """
    values = differences[differences != 0]
    least = values.sum() - _ULP * np.abs(values).sum()
    if len(values) > _COUNTED:
        signs = np.random.default_rng(seed).integers(0, 2, (_DRAWS, len(values)), dtype=np.int8) * 2 - 1
        return float((1 + (signs @ values >= least).sum()) / (1 + _DRAWS))
    low, high = (_all_sums(half) for half in np.array_split(values, 2))
    high.sort()
    reached = len(high) - np.searchsorted(high, least - low, side="left")
    return float(reached.sum() / (len(low) * len(high)))


def rank(own: float, others: Float[NDArray[np.float64], " K"]) -> float:
    """Return the p-value of «it does more than the others»: the share of all 1 + K, itself among them, that do as much.

    If nothing sets it apart from the others, a share of at most p comes up with a probability of at most p. It is never
    below 1 / (1 + K).

    Example:
        >>> rank(0.5, np.array([0.1, 0.6, 0.5, 0.2]))
        0.6
    """
    return float((1 + (others >= own).sum()) / (1 + len(others)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all of several tests at once.

    Example:
        >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
        [0.06, 0.03, 0.06]

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(steps).clip(max=1)
    return [float(p) for p in adjusted]


def power(sets: int, others: int, share: float, floor: float, *, level: float = 0.05, runs: int = 2000) -> float:
    """Return how often `matched_sets` finds p <= `level`, of simulated panels in which the shares are these.

    Args:
        sets: Features.
        others: Others in the place of each.
        share: Probability that it happens in its own place.
        floor: Probability that it happens with another there.
        level: Of the test.
        runs: Simulated panels.
    """
    draw = np.random.default_rng(0)
    own = draw.random((runs, sets)) < share
    rest = draw.random((runs, sets, others)) < floor
    found = [matched_sets(mine, list(theirs)) <= level for mine, theirs in zip(own, rest, strict=True)]
    return float(np.mean(found))


def _all_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums
