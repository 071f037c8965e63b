"""How often and how strongly each feature fires, and in how many documents.

Axes: F features, B bins.
"""

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.reading.firings import Firings

# Bin b holds activations in [2^((b - 25) / 2), 2^((b - 24) / 2)): half-octaves, so that no range has to be known
# beforehand. The first and the last bin take what lies beyond.
_FIRST, BINS = -12.0, 48
HISTOGRAM_EDGES = [float(2.0 ** (_FIRST + step / 2)) for step in range(BINS - 1)]


class Moments:
    """Counts over the tokens seen so far.

    Attributes:
        tokens: Tokens that count.
        fires: (F,) tokens on which a feature fires.
        total, total_square: (F,) sums of its activation and of the square.
        maximum: (F,) its largest activation.
        histogram: (F, B) firings by activation; edges: HISTOGRAM_EDGES.
        documents: (F,) documents in which it fires; rows come in corpus order.
        document_tokens: Tokens that count of each document, by number.
    """

    def __init__(self, n_features: int) -> None:
        self.tokens = np.zeros((), np.int64)
        self.fires = np.zeros(n_features, np.int64)
        self.total = np.zeros(n_features)
        self.total_square = np.zeros(n_features)
        self.maximum = np.zeros(n_features, np.float32)
        self.histogram = np.zeros((n_features, BINS), np.int64)
        self.documents = np.zeros(n_features, np.int64)
        self.document_tokens = np.zeros(0, np.int64)
        self._last_document = np.full(n_features, -1, np.int64)

    def update(self, firings: Firings) -> None:
        features, values, n = firings.feature_of, firings.values, len(self.fires)
        self.tokens += firings.counted.sum()
        self.fires += np.bincount(features, minlength=n)
        self.total += np.bincount(features, weights=values, minlength=n)
        self.total_square += np.bincount(features, weights=values.astype(np.float64) ** 2, minlength=n)
        np.maximum.at(self.maximum, features, values)
        bins = np.searchsorted(HISTOGRAM_EDGES, values, side="right")
        self.histogram += np.bincount(features * BINS + bins, minlength=n * BINS).reshape(n, BINS)
        self._update_documents(firings)

    def _update_documents(self, firings: Firings) -> None:
        counted = firings.documents[firings.counted]
        if len(counted):
            tokens = np.bincount(counted, minlength=len(self.document_tokens))
            tokens[: len(self.document_tokens)] += self.document_tokens
            self.document_tokens = tokens
        if not len(firings.values):
            return
        documents = firings.documents.ravel()[firings.token_of]
        first = int(documents.min())
        span = int(documents.max()) - first + 1
        met = np.zeros((len(self.fires), span), bool)
        met[firings.feature_of, documents - first] = True
        features, numbers = met.nonzero()
        numbers += first
        # A document that a batch ends in goes on in the next one.
        new = numbers != self._last_document[features]
        self.documents += np.bincount(features[new], minlength=len(self.fires))
        self._last_document[features] = numbers  # ascending: the last one stays

    @property
    def mean(self) -> NDArray[np.float64]:
        """(F,) the mean activation over the tokens on which a feature fires; 0 where it never does."""
        return self.total / np.maximum(self.fires, 1)

    @property
    def std(self) -> NDArray[np.float64]:
        variance = self.total_square / np.maximum(self.fires, 1) - self.mean**2
        deviation: NDArray[np.float64] = np.sqrt(np.maximum(variance, 0))
        return deviation

    @property
    def document_spread(self) -> NDArray[np.float64]:
        """(F,) documents that a feature reaches, of those that as many firings at random tokens would reach."""
        lengths = self.document_tokens[self.document_tokens > 0] / max(int(self.tokens), 1)
        # exp(n log(1 - p)) by distinct numbers of firings: many features share one.
        counts, inverse = np.unique(self.fires, return_inverse=True)
        with np.errstate(divide="ignore"):
            missed = np.log1p(-np.minimum(lengths, 1))
        expected = np.array([(1 - np.exp(n * missed)).sum() if n else 1.0 for n in counts])
        spread: NDArray[np.float64] = self.documents / expected[inverse]
        return spread
