"""How alike the texts are on which a feature fires, beside what chance gives.

Axes: F features, k windows of each, N windows of all, W tokens in a window, P terms.

Two windows are as alike as the cosine of their term vectors, and a feature as coherent as its windows are on average
over pairs. A term counts once a window, with weight log(N / windows that hold it), so that what stands everywhere
weighs nothing.

    window coherence     half of the cosine is of the tokens of the window, wherever they stand, half of those at the
                         peak, before it and after it, each tied to its place: a feature of one token and one of a
                         topic both stand out
    document coherence   the tokens wherever they stand, over pairs of windows from different documents: a topic that
                         reaches beyond one text

The null deals the same windows at random over the features, each feature keeping its number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lightsae.analysis.reading.firings import BEFORE, NO_TOKEN, Windows

_PLACES = (-1, 0, 1)  # from the peak
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Coherence:
    """Mean cosine over pairs of windows, from 0 (nothing in common) to 1 (the same).

    Attributes:
        values: (F,) of each feature's own windows; NaN where there is no pair.
        null: (F,) of as many windows dealt at random.
    """

    values: NDArray[np.float32]
    null: NDArray[np.float32]


def window_coherence(windows: Windows, vocabulary: int, *, seed: int = 0) -> Coherence:
    """Return how alike each feature's windows are, tokens and their places around the peak taken together.

    Args:
        windows: Of all features: weights and the null come from all of them.
        vocabulary: Number of token ids.
        seed: Seed of the null.
    """
    tokens = windows.tokens[windows.there]
    halves = [_vectors(tokens, vocabulary), _vectors(_places(tokens, vocabulary), vocabulary * len(_PLACES))]
    vectors = sparse.hstack(halves, format="csr") * np.float32(np.sqrt(0.5))
    return _with_null(vectors, windows, np.arange(len(tokens)), seed)


def document_coherence(windows: Windows, vocabulary: int, *, seed: int = 0) -> Coherence:
    """Return how alike each feature's windows are across documents, as bags of tokens.

    Args:
        windows: Of all features: weights and the null come from all of them.
        vocabulary: Number of token ids.
        seed: Seed of the null.
    """
    tokens = windows.tokens[windows.there]
    return _with_null(_vectors(tokens, vocabulary), windows, windows.documents[windows.there], seed)


def _places(tokens: NDArray[np.int32], vocabulary: int) -> Ints:
    """Return the terms (N, 3) of windows: the tokens around the peak, each place with terms of its own."""
    around = tokens[:, [BEFORE + place for place in _PLACES]]
    return np.where(around == NO_TOKEN, NO_TOKEN, around + vocabulary * np.arange(len(_PLACES)))


def _vectors(terms: NDArray[np.integer[Any]], n_terms: int) -> Any:
    """Return unit vectors (N, n_terms), sparse, of the terms (N, P) of windows; NO_TOKEN is none.

    Each term counts once, by its rarity; a vector is zero where no term weighs.
    """
    n = len(terms)
    keys = np.unique((terms + n_terms * np.arange(n)[:, None])[terms != NO_TOKEN])
    window_of, term_of = keys // n_terms, keys % n_terms
    weights = np.log(n / np.bincount(term_of, minlength=n_terms)[term_of].clip(1)).astype(np.float32)
    norms = np.sqrt(np.bincount(window_of, weights.astype(np.float64) ** 2, minlength=n))
    weights /= np.where(norms > 0, norms, 1)[window_of].astype(np.float32)
    return sparse.csr_array((weights, (window_of, term_of)), shape=(n, n_terms))


def _with_null(vectors: Any, windows: Windows, groups: Ints, seed: int) -> Coherence:
    feature_of = windows.there.nonzero()[0]
    n_features = len(windows.scores)
    values = _mean_cosine(vectors, feature_of, groups, n_features)
    dealt = np.random.default_rng(seed).permutation(feature_of)
    return Coherence(values, _mean_cosine(vectors, dealt, groups, n_features))


def _mean_cosine(vectors: Any, feature_of: Ints, groups: Ints, n_features: int) -> NDArray[np.float32]:
    """Return each feature's mean cosine over pairs of its windows that are of different groups (N,); NaN without any.

    The sum over all pairs is the squared norm of the sum of the vectors; that over pairs within a group is the same of
    the group, and is taken off.
    """
    # A cell is one feature's windows of one group.
    group_of = np.unique(groups, return_inverse=True)[1]
    stride = int(group_of.max(initial=0)) + 1
    cells, cell_of = np.unique(feature_of * stride + group_of, return_inverse=True)
    owners = cells // stride
    within = np.bincount(owners, _summed_squares(vectors, cell_of, len(cells)), minlength=n_features)
    between = _summed_squares(vectors, feature_of, n_features) - within
    sizes = np.bincount(cell_of, minlength=len(cells)).astype(np.float64)
    counts = np.bincount(feature_of, minlength=n_features).astype(np.float64) ** 2
    counts -= np.bincount(owners, sizes**2, minlength=n_features)
    # Cosines of such vectors lie from 0 to 1, but for the last digits of the difference.
    means = np.full(n_features, np.nan)
    np.divide(between.clip(0, counts), counts, out=means, where=counts > 0)
    return means.astype(np.float32)


def _summed_squares(vectors: Any, cell_of: Ints, n_cells: int) -> NDArray[np.float64]:
    """Return the squared norm of each cell's sum of vectors."""
    n = len(cell_of)
    sums = sparse.csr_array((np.ones(n, np.float32), (cell_of, np.arange(n))), shape=(n_cells, n)) @ vectors
    squares: NDArray[np.float64] = np.asarray(sums.power(2).sum(axis=1), np.float64).ravel()
    return squares
