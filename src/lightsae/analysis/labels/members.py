"""Which patterns hold where a feature fires: what the searches for its rules look at.

Axes: n firings looked at, K kinds of patterns, P patterns that hold at one of them.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lightsae.analysis.labels.patterns import KINDS
from lightsae.analysis.labels.rules import PatternKey, PatternTable
from lightsae.analysis.reading.firing_lists import FiringLists

# Firings that are looked at, of a feature that fires more often.
_MOST_FIRINGS = 20_000


@dataclass(frozen=True)
class Members:
    """The patterns that hold at a feature's firings on the mining text.

    Attributes:
        table: All patterns of the text.
        at: (K, n) the pattern of each kind that holds at each firing, by number among the P.
        kinds: (P,) place of each one's kind in KINDS.
        ids: (P,) its number in the table, among those of its kind.
        right: (P,) firings looked at that it holds at; 0 where its key says that nothing is known.
        everywhere: (P,) tokens of the text that it holds at.
        scale: How many firings of the whole text each of those looked at stands for.
    """

    table: PatternTable
    at: NDArray[np.int64]
    kinds: NDArray[np.int64]
    ids: NDArray[np.int64]
    right: NDArray[np.int64]
    everywhere: NDArray[np.int64]
    scale: float

    @classmethod
    def of(cls, table: PatternTable, fires: FiringLists, feature: int) -> "Members":
        """Gather the patterns at a feature's firings on the mining text; it fires at least once."""
        places = fires[feature]
        looked_at = places[:: max(1, len(places) // _MOST_FIRINGS)]
        at, columns, count = [], [], 0
        for place, kind in enumerate(KINDS):
            numbers, ids = pd.factorize(table.ids[kind][looked_at])
            right = np.where(table.known[kind][ids] < 0, 0, np.bincount(numbers))
            at.append(numbers + count)
            columns.append(np.stack([np.full(len(ids), place), ids, right, table.counts[kind][ids]]))
            count += len(ids)
        kinds, all_ids, all_right, everywhere = np.concatenate(columns, 1)
        scale = len(places) / fires.read / len(looked_at)
        return cls(table, np.stack(at), kinds, all_ids, all_right, everywhere, scale)

    @property
    def firings(self) -> int:
        """Firings that are looked at."""
        return int(self.at.shape[1])

    def key(self, pattern: int) -> PatternKey:
        """Return what a pattern is called outside of these."""
        kind = KINDS[self.kinds[pattern]]
        return kind, int(self.table.known[kind][self.ids[pattern]])

    def frame(self, pattern: int) -> tuple[str, int]:
        """Return what a pattern shares with those that read as one list of tokens with it."""
        kind = KINDS[self.kinds[pattern]]
        return kind, int(self.table.frames[kind][self.ids[pattern]])
