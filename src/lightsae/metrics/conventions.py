"""What counts as an attention sink, and what as firing, wherever it is asked; and who is whose partner.

Axes: F rows, G columns.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

# A token whose activation has a norm above so many times the site's median is an attention sink.
SINK_NORM_RATIO = 10.0
# Where a firing has to tell something (labels, monitoring), it lies above this share of the feature's maximum.
FIRES_ABOVE = 0.1
NO_PARTNER = -1


def is_sink(norms: Float[Tensor, "*tokens"]) -> Bool[Tensor, "*tokens"]:
    """Return which tokens are attention sinks by the norms of their activations at one site.

    Example:
        >>> import torch
        >>> is_sink(torch.tensor([300.0, 1.0, 2.0, 9.0, 2.0])).tolist()
        [True, False, False, False, False]
    """
    return norms > SINK_NORM_RATIO * norms.median()


def assign(similarities: NDArray[np.floating[Any]] | sparse.csr_array) -> NDArray[np.int64]:
    """Match rows with columns one to one, so that the sum over the pairs is the largest there is (Hungarian method).

    A pair that is less alike than nothing counts as nothing: it must not break up a pair elsewhere.

    Args:
        similarities: (F, G); dense, or sparse with positive entries for the pairs that may be made.

    Returns:
        The column of each row, (F,), or NO_PARTNER.

    Example:
        >>> assign(np.array([[0.9, 0.8], [0.8, 0.1], [0.2, 0.0]])).tolist()
        [1, 0, -1]
    """
    count, others = similarities.shape
    if isinstance(similarities, np.ndarray):
        rows, columns = linear_sum_assignment(np.maximum(similarities, 0), maximize=True)
    else:
        # A place of its own for every row: it may stay without a partner. Weights of 0 would not be edges at all.
        padded = sparse.hstack([similarities, sparse.diags_array(np.full(count, 1e-6))]).tocsr()
        padded.eliminate_zeros()
        rows, columns = min_weight_full_bipartite_matching(sparse.csr_matrix(padded), maximize=True)
        rows, columns = rows[columns < others], columns[columns < others]
    partners = np.full(count, NO_PARTNER, dtype=np.int64)
    partners[rows] = columns
    return partners
