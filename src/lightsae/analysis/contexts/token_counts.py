"""Counts of what features fire on: pairs with tokens, on or beside which they fire, in bounded memory; and roles.

Axes: F features, m partners kept of each, R roles.
"""

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from lightsae.activations.roles import ROLES
from lightsae.analysis.reading.firings import Firings, Ints, ranks

# Batches' counts are merged when this many are waiting: merging sorts the whole table.
_WAITING = 1 << 19


class PairCounts:
    """Counts pairs; exact until a feature has more than `kept` partners, when the rarest are dropped.

    After that a count is a lower bound: a partner that was dropped and comes back starts again from 0.

    Args:
        n_features: F.
        n_partners: Partners are 0..n_partners - 1.
        kept: Partners kept of a feature, m.
    """

    def __init__(self, n_features: int, n_partners: int, kept: int) -> None:
        self.n_features, self.n_partners, self.kept = n_features, n_partners, kept
        # Half the width sorts twice as fast.
        self._dtype = np.int32 if n_features * n_partners < 2**31 else np.int64
        self.keys: Any = np.empty(0, self._dtype)
        self.counts = np.empty(0, np.int64)
        self._waiting: list[tuple[NDArray[np.int32] | Ints, Ints]] = []

    def update(self, features: Ints, partners: Ints) -> None:
        keys = (features * self.n_partners + partners).astype(self._dtype)
        keys, counts = np.unique(keys, return_counts=True)
        self._waiting.append((keys, counts))
        if sum(len(keys) for keys, _ in self._waiting) > _WAITING:
            self.merge()

    @property
    def waiting(self) -> tuple[Any, Ints, Ints]:
        """What has not been merged: keys, counts, and how many of each update."""
        keys = np.concatenate([np.empty(0, self._dtype), *(keys for keys, _ in self._waiting)])
        counts = np.concatenate([np.empty(0, np.int64), *(counts for _, counts in self._waiting)])
        return keys, counts, np.array([len(keys) for keys, _ in self._waiting], np.int64)

    def restore_waiting(self, keys: Any, counts: Ints, sizes: Ints) -> None:
        """Put back `waiting`: merging at another moment would drop other partners."""
        ends = np.cumsum(sizes)[:-1]
        self._waiting = list(zip(np.split(keys, ends), np.split(counts, ends), strict=True)) if len(sizes) else []

    def merge(self) -> None:
        """Bring in what waits."""
        if not self._waiting:
            return
        keys = np.concatenate([self.keys, *(keys for keys, _ in self._waiting)])
        counts = np.concatenate([self.counts, *(counts for _, counts in self._waiting)])
        self._waiting = []
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.empty(0, np.int64)
        self.keys = keys[starts]
        self.counts = np.add.reduceat(counts, starts) if len(starts) else counts
        if len(self.keys) > 2 * self.n_features * self.kept:
            self._prune()

    def _prune(self) -> None:
        features = self.keys.astype(np.int64) // self.n_partners
        order = np.lexsort((self.keys, -self.counts, features))
        kept = np.sort(order[ranks(features[order]) < self.kept])
        self.keys, self.counts = self.keys[kept], self.counts[kept]

    def top(self, k: int) -> tuple[Ints, Ints]:
        """Return the k most frequent partners of each feature, (F, k), -1 where there are fewer; and their counts."""
        self.merge()
        partners, counts = np.full((self.n_features, k), -1, np.int64), np.zeros((self.n_features, k), np.int64)
        features = self.keys.astype(np.int64) // self.n_partners
        order = np.lexsort((self.keys, -self.counts, features))
        ordered = features[order]
        places = ranks(ordered)
        kept = places < k
        partners[ordered[kept], places[kept]] = self.keys[order[kept]] % self.n_partners
        counts[ordered[kept], places[kept]] = self.counts[order[kept]]
        return partners, counts


class RoleCounts:
    """Counts in whose words features fire: firings by role of conversations.

    Attributes:
        fires: (F, R) tokens of each role on which a feature fires.
        tokens: (R,) tokens that count; all 0 where no text is a conversation.
    """

    fires: Int64[np.ndarray, "F R"]
    tokens: Int64[np.ndarray, " R"]

    def __init__(self, n_features: int) -> None:
        self.fires = np.zeros((n_features, len(ROLES)), np.int64)
        self.tokens = np.zeros(len(ROLES), np.int64)

    def update(self, firings: Firings) -> None:
        """Add the firings of a batch."""
        if firings.roles is None:
            return
        places = firings.feature_of * len(ROLES) + firings.roles[firings.token_of]
        self.fires += np.bincount(places, minlength=self.fires.size).reshape(self.fires.shape)
        self.tokens += np.bincount(firings.roles[firings.counted.ravel()], minlength=len(ROLES))

    @property
    def by_role(self) -> dict[str, int]:
        """Tokens of each role that has some."""
        return {role: int(count) for role, count in zip(ROLES, self.tokens, strict=True) if count}

    def shares(self) -> dict[str, Float64[np.ndarray, " F"]]:
        """Return, for each role, the share of a feature's firings that are on its tokens; NaN for a silent one."""
        if not self.tokens.any():
            return {}
        total = self.fires.sum(1)
        with np.errstate(invalid="ignore"):
            return {role: self.fires[:, code] / total for code, role in enumerate(ROLES)}
