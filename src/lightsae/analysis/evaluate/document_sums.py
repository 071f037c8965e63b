"""Sums over the tokens of each document: every figure is a function of sums, and documents are what is drawn anew.

Axes:    T tokens, N documents, C columns, B draws.
Source:  Efron & Tibshirani 1993, ch. 8: the bootstrap over clusters. Tokens of a document are no independent draws.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Percentiles of a thousand draws move by about 2% of an interval's width.
DRAWS = 1000
# With fewer documents the draws say little of how documents differ.
FEWEST = 10


class DocumentSums:
    """Adds up what is known of tokens, document by document. A batch may hold parts of several documents."""

    def __init__(self) -> None:
        self._documents: list[NDArray[np.int64]] = []
        self._sums: dict[str, list[NDArray[np.float64]]] = {}

    def add(self, documents: NDArray[np.int64], values: Mapping[str, NDArray[np.float64]]) -> None:
        """Add the tokens of a batch; each batch has the same names."""
        order = np.argsort(documents, kind="stable")
        present, starts = np.unique(documents[order], return_index=True)
        self._documents.append(present)
        # Whole rows have their documents in order.
        in_order = bool((order[1:] > order[:-1]).all())
        for name, of_tokens in values.items():
            summed = np.add.reduceat(of_tokens if in_order else of_tokens[order], starts, axis=0, dtype=np.float64)
            self._sums.setdefault(name, []).append(summed)

    def tables(self) -> dict[str, NDArray[np.float64]]:
        """Return the sums by name, documents in the order of their numbers."""
        if not self._documents:
            return {}
        everything = np.concatenate(self._documents)
        present, place = np.unique(everything, return_inverse=True)
        tables = {}
        for name, parts in self._sums.items():
            stacked = np.concatenate(parts)
            tables[name] = np.zeros((len(present), *stacked.shape[1:]))
            np.add.at(tables[name], place, stacked)
        return tables

    @property
    def documents(self) -> NDArray[np.int64]:
        """Their numbers, in order."""
        return np.unique(np.concatenate(self._documents)) if self._documents else np.empty(0, np.int64)


def draws(documents: int, seed: int = 0, count: int = DRAWS) -> NDArray[np.float64]:
    """Return how often each document is in each of `count` samples of as many documents, drawn with replacement.

    The first row is the sample itself: `draws(n) @ table` gives the sums of the text in the first row, and those of the
    draws below.
    """
    times = np.random.default_rng([seed, documents]).multinomial(documents, np.full(documents, 1 / documents), count)
    return np.vstack([np.ones(documents), times.astype(np.float64)])


def interval(values: NDArray[np.float64], documents: int) -> tuple[float | None, float | None]:
    """Return the middle 95% of the draws' values, which stand behind the sample's own; None of too few documents."""
    if documents < FEWEST or not np.isfinite(values).all():
        return None, None
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return float(low), float(high)
