"""For each feature, the tokens of a text on which it fires: above a share of its maximum.

No torch: the processes that learn labels import these.

Axes: F features, T tokens of the text (rows * S), N firings.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FiringLists:
    """Which tokens of a text each feature fires on.

    Attributes:
        tokens: (N,) flat token indices, by feature, ascending within each.
        starts: (F + 1,) where each feature's begin.
        counted: (T,) which tokens count; the others fire for no feature.
        tokens_read: Tokens, from the first on, whose firings are here: all, unless there were too many to keep.
        values: (N,) activations; None where they were not asked for.
        documents: (T,) running number of each token's document; None: each token is one of its own.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    counted: NDArray[np.bool_]
    tokens_read: int
    values: NDArray[np.float32] | None = None
    documents: NDArray[np.int64] | None = None

    def __getitem__(self, feature: int) -> NDArray[np.int32]:
        return self.tokens[self.starts[feature] : self.starts[feature + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def read(self) -> float:
        """Share of the text whose firings are here."""
        return self.tokens_read / len(self.counted) if len(self.counted) else 1.0

    @property
    def fires(self) -> NDArray[np.int64]:
        """(F,) tokens on which each feature fires."""
        fires: NDArray[np.int64] = np.diff(self.starts)
        return fires
