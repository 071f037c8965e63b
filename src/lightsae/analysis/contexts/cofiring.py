"""Which features fire together: partners found on a sample of the text, then counted exactly on all of it.

Axes: F features, m candidate partners of each, T tokens of a batch.

On the sample all pairs are counted (a sparse product of the firings with themselves). From there on only each feature's
candidates are, a batch at a time, as the common bits of two bitmaps over its tokens: m * T / 8 bytes per feature,
whatever the number of firings. The sample's counts are exact too, so that the sums are.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lightsae.analysis.reading.firings import Firings, Ints, ranks

# As wide as scipy makes them.
Integers = NDArray[np.integer[Any]]
# Pairs that the sample may have, and the share of the text that it may be.
_SAMPLE_PAIRS = 20_000_000
_SAMPLE_SHARE = 0.125
# Features whose bitmaps are compared at once: so few that they stay in the cache.
_CHUNK = 256


class Cofiring:
    """Counts the tokens on which two features fire together.

    Args:
        n_features: F.
        total_tokens: Tokens of the whole pass.
        candidates: m.
    """

    def __init__(self, n_features: int, total_tokens: int, candidates: int = 16) -> None:
        self.n_features, self.m = n_features, min(candidates, max(1, n_features - 1))
        self.sample_tokens = int(total_tokens * _SAMPLE_SHARE)
        self.tokens = np.zeros((), np.int64)
        self.pairs = np.zeros((), np.int64)
        self.fires = np.zeros(n_features, np.int64)
        self.partners = np.empty((0, self.m), np.int64)
        self.counts = np.empty((0, self.m), np.int64)
        self._sample: Any = sparse.csr_matrix((n_features, n_features), dtype=np.int32)

    @property
    def sampling(self) -> bool:
        """Whether all pairs are still being counted."""
        return not len(self.partners)

    def update(self, firings: Firings) -> None:
        tokens, n = firings.tokens.size, len(firings.values)
        self.tokens += firings.counted.sum()
        self.fires += np.bincount(firings.feature_of, minlength=self.n_features)
        if not self.sampling:
            self._count(firings)
            return
        ones = np.ones(n, np.int32)
        fires = sparse.csr_matrix((ones, (firings.token_of, firings.feature_of)), shape=(tokens, self.n_features))
        together = fires.T @ fires
        self._sample = self._sample + together
        self.pairs += together.nnz
        if self.tokens >= self.sample_tokens or self.pairs >= _SAMPLE_PAIRS:
            self.choose()

    def choose(self) -> None:
        """End the sample: from here on, count each feature with its m most correlated partners."""
        pairs = self._sample.tocoo()
        # A pair seen once is chance, and there are more of those than of all others.
        off = (pairs.row != pairs.col) & (pairs.data > 1)
        row, column, both = (part[off].astype(np.int64) for part in (pairs.row, pairs.col, pairs.data))
        strength = correlation(both, self.fires[row], self.fires[column], int(self.tokens))
        # One key sorts faster than three: correlations lie in -1..1, and pairs come by row, then column.
        order = np.argsort(4.0 * row - strength, kind="stable")
        row, column, both = row[order], column[order], both[order]
        places = ranks(row)
        kept = places < self.m
        self.partners = np.full((self.n_features, self.m), -1, np.int64)
        self.counts = np.zeros((self.n_features, self.m), np.int64)
        self.partners[row[kept], places[kept]] = column[kept]
        self.counts[row[kept], places[kept]] = both[kept]
        self._sample = sparse.csr_matrix((self.n_features, self.n_features), dtype=np.int32)

    @property
    def sample(self) -> tuple[Integers, Integers, Integers]:
        """The pairs counted on the sample so far: features, features, tokens together."""
        pairs = self._sample.tocoo()
        return pairs.row, pairs.col, pairs.data

    def restore_sample(self, row: Integers, column: Integers, together: Integers) -> None:
        """Put back a `sample`."""
        shape = (self.n_features, self.n_features)
        self._sample = sparse.csr_matrix((together, (row, column)), shape=shape, dtype=np.int32)

    def _count(self, firings: Firings) -> None:
        words = -(-firings.tokens.size // 64)
        bits = np.zeros((self.n_features, words), np.uint64)
        np.bitwise_or.at(
            bits,
            (firings.feature_of, firings.token_of // 64),
            np.uint64(1) << (firings.token_of % 64).astype(np.uint64),
        )
        firing = np.flatnonzero(np.bincount(firings.feature_of, minlength=self.n_features))
        for start in range(0, len(firing), _CHUNK):
            features = firing[start : start + _CHUNK]
            own = bits[features]
            for column in range(self.m):
                partner = self.partners[features, column]
                common = np.bitwise_count(own & bits[partner]).sum(1, dtype=np.int64)
                self.counts[features, column] += np.where(partner >= 0, common, 0)

    def edges(self, k: int) -> tuple[Ints, Ints, Ints, NDArray[np.float64]]:
        """Return the k most correlated partners of each feature: sources, targets, tokens together, phi."""
        if self.sampling:
            self.choose()
        sources = np.repeat(np.arange(self.n_features), self.m)
        targets, both = self.partners.ravel(), self.counts.ravel()
        there = (targets >= 0) & (both > 0)
        sources, targets, both = sources[there], targets[there], both[there]
        phi = correlation(both, self.fires[sources], self.fires[targets], int(self.tokens))
        order = np.lexsort((targets, -phi, sources))
        sources, targets, both, phi = sources[order], targets[order], both[order], phi[order]
        kept = ranks(sources) < k
        return sources[kept], targets[kept], both[kept], phi[kept]


def correlation(both: Ints, a: Ints, b: Ints, tokens: int) -> NDArray[np.float64]:
    """Return phi, the correlation of two firing indicators, from how often each and both are set."""
    p, q, r = a / max(tokens, 1), b / max(tokens, 1), both / max(tokens, 1)
    spread = np.sqrt(p * (1 - p) * q * (1 - q))
    phi: NDArray[np.float64] = (r - p * q) / np.maximum(spread, 1e-12)
    return phi
