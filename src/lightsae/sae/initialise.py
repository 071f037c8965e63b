"""Where an SAE starts: the geometric median of the data.

Axes: T tokens, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def geometric_median(x: Float[Tensor, "T D"], *, tol: float = 1e-6, max_iters: int = 200) -> Float[Tensor, " D"]:
    """Return the point with the least summed Euclidean distance to the rows of `x`.

    Args:
        x: Activations, one row a token.
        tol: Stop when an update moves less than this share of the mean distance.
        max_iters: Cap on updates; each costs O(T * D).

    Returns:
        The median, in the unit and dtype of `x`, detached from autograd.

    Raises:
        ValueError: `x` has no rows, or holds a NaN or an infinity.

    Source:
        Weiszfeld's iteration; as an SAE's start, arXiv:2406.04093 app. A.1.
    """
    if len(x) == 0 or not bool(x.isfinite().all()):
        raise ValueError(
            f"geometric_median needs finite rows; got {tuple(x.shape)} with {x.isfinite().sum()} finite values"
        )
    points = x.detach().float()
    median = points.mean(0)
    for _ in range(max_iters):
        distances = (points - median).norm(dim=1)
        # A row that coincides with the estimate would get an infinite weight.
        weights = 1 / distances.clamp_min(1e-12 + 1e-9 * distances.mean())
        moved = (weights @ points) / weights.sum()
        step, median = (moved - median).norm(), moved
        if step <= tol * distances.mean():
            break
    return median.to(x.dtype)
