"""Windows of text around the tokens on which features fire.

Axes: F features, k windows kept of each, W tokens in a window.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Tokens before and after the peak; the peak stands in column BEFORE.
BEFORE, AFTER = 16, 8
WIDTH = BEFORE + 1 + AFTER
NO_TOKEN = -1


@dataclass(frozen=True)
class Windows:
    """The windows that were kept of each feature, the best first.

    Attributes:
        scores: (F, k) what they are ordered by, descending; -inf where a feature has fewer than k.
        tokens: (F, k, W) token ids; NO_TOKEN beyond the ends of the row.
        values: (F, k, W) the feature's activation on each of them, in normalised units; 0 where it does not fire.
        documents: (F, k) running number of the document.
        rows: (F, k) running number of the token row.
        positions: (F, k) position of the peak in its row.
    """

    scores: NDArray[np.float32]
    tokens: NDArray[np.int32]
    values: NDArray[np.float32]
    documents: NDArray[np.int64]
    rows: NDArray[np.int64]
    positions: NDArray[np.int32]

    @property
    def there(self) -> NDArray[np.bool_]:
        """(F, k) which windows exist."""
        return np.isfinite(self.scores)

    @property
    def peaks(self) -> NDArray[np.float32]:
        """(F, k) the activation on the peak token."""
        peaks: NDArray[np.float32] = self.values[:, :, BEFORE]
        return peaks
