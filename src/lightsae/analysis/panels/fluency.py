"""How far generated texts repeat themselves.

Axes: n texts.
Source: distinct-n of Li et al. 2016, arXiv:1510.03055; the share of repeated n-grams of Welleck et al. 2020,
        arXiv:1908.04319 (seq-rep-n).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_REPEATED = 4


def distinct(texts: Sequence[Sequence[int]], n: int) -> NDArray[np.float64]:
    """Return the share of different n-grams among each text's n-grams; 1 where it has none."""
    return np.array([_distinct(text, n) for text in texts])


def repetition(texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return the share of each text's 4-grams that stood in it before."""
    return 1 - distinct(texts, _REPEATED)


def _distinct(text: Sequence[int], n: int) -> float:
    grams = [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
