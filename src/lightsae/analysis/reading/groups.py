"""Places within groups, without loops."""

import numpy as np
from numpy.typing import NDArray


def ranks(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each entry's place within its group, from 0; entries of one group stand together."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else np.empty(0, np.int64)
    places: NDArray[np.int64] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))
    return places
