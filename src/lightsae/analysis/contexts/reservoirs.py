"""The windows that are kept of each feature: the k best by some score, gathered while the text streams by.

Axes: F features, k windows kept, W tokens in a window, n candidates.

With the activation as the score these are the top windows. With log(u) / activation, u uniform, they are a sample
without replacement in which a firing's chance goes with its activation (Efraimidis and Spirakis 2006): strata cut from
it are quantiles of activation mass. A row gives a feature one window at most.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.reading.firings import WIDTH, Firings, Floats, Ints, Windows, ranks

_ARRAYS = ("scores", "tokens", "values", "documents", "rows", "positions")


class Reservoir:
    """Keeps each feature's k best-scored windows.

    Args:
        n_features: F.
        k: Windows to keep of each.
    """

    def __init__(self, n_features: int, k: int) -> None:
        self.n_features, self.k = n_features, k
        # Slots in no order; the lowest score of each feature's is what a candidate has to beat.
        self.scores = np.full((n_features, k), -np.inf, np.float32)
        self.floors = np.full(n_features, -np.inf, np.float32)
        self.tokens = np.full((n_features, k, WIDTH), -1, np.int32)
        self.values = np.zeros((n_features, k, WIDTH), np.float32)
        self.documents = np.full((n_features, k), -1, np.int64)
        self.rows = np.full((n_features, k), -1, np.int64)
        self.positions = np.full((n_features, k), -1, np.int32)

    def update(self, firings: Firings, features: Ints, places: Ints, scores: Floats) -> None:
        """Offer some tokens.

        Args:
            firings: The batch that they are of.
            features: (n,) whose window it would be.
            places: (n,) token of the batch that the window stands around.
            scores: (n,) what decides.
        """
        hopeful = scores > self.floors[features]
        features, places, scores = features[hopeful], places[hopeful], scores[hopeful]
        if not len(features):
            return
        features, places, scores = _best_of_each_row(features, places, scores, firings.context)
        kept = _within_k(features, scores, self.k)
        features, places, scores = features[kept], places[kept], scores[kept]
        touched = np.flatnonzero(np.bincount(features, minlength=self.n_features))
        # Slots of the touched features, and the candidates after them, ranked together.
        slots = (touched[:, None] * self.k + np.arange(self.k)).ravel()
        all_features = np.concatenate([slots // self.k, features])
        all_scores = np.concatenate([self.scores.reshape(-1)[slots], scores])
        order = np.lexsort((-all_scores, all_features))
        out = ranks(all_features[order]) >= self.k
        # As many candidates come in as slots go out, feature by feature: each takes the place of one.
        is_slot = order < len(slots)
        freed, chosen = slots[order[out & is_slot]], order[~out & ~is_slot] - len(slots)
        features, places = features[chosen], places[chosen]
        fresh = {
            "scores": scores[chosen],
            "tokens": firings.window_tokens(places),
            "values": firings.window_values(places, features),
            "documents": firings.documents.ravel()[places],
            "rows": firings.rows[places // firings.context],
            "positions": places % firings.context,
        }
        for name in _ARRAYS:
            array = getattr(self, name)
            array.reshape(self.n_features * self.k, *array.shape[2:])[freed] = fresh[name]
        self.floors[touched] = self.scores[touched].min(1)

    def windows(self) -> Windows:
        """Return what is kept, the best first."""
        order = np.lexsort((self.positions, self.rows, -self.scores))
        return Windows(**{name: _reordered(getattr(self, name), order) for name in _ARRAYS})


def weighted_scores(firings: Firings, seed: int) -> Floats:
    """Return log(u) / activation for each firing; u follows from seed, row, position and feature alone."""
    rows = firings.rows[firings.token_of // firings.context]
    token = (rows * firings.context + firings.token_of % firings.context).astype(np.uint64)
    # The seed is mixed before the feature is added: else feature f of seed s would draw as feature f + s of seed 0.
    stream = _mix(firings.feature_of.astype(np.uint64) + _mix(np.array([seed], np.uint64)))
    mixed = _mix(token * np.uint64(0x9E3779B97F4A7C15) + stream)
    uniform = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    scores: Floats = (np.log(uniform) / firings.values).astype(np.float32)
    return scores


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _reordered(array: NDArray[Any], order: Ints) -> NDArray[Any]:
    return np.take_along_axis(array, order.reshape(*order.shape, *[1] * (array.ndim - 2)), axis=1)


def _best_of_each_row(features: Ints, places: Ints, scores: Floats, context: int) -> tuple[Ints, Ints, Floats]:
    rows = places // context
    group = features * (int(rows.max()) + 1) + rows
    order = np.lexsort((-scores, group))
    group = group[order]
    first = order[np.r_[True, group[1:] != group[:-1]]]
    return features[first], places[first], scores[first]


def _within_k(features: Ints, scores: Floats, k: int) -> Ints:
    """Return which candidates are among the k best of their feature."""
    order = np.lexsort((-scores, features))
    kept: Ints = order[ranks(features[order]) < k]
    return kept
