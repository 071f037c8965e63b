"""What an SAE starts with: the scales and the geometric median of its data, and random directions.

Axes: T tokens, D width.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Normalisation = str
NORMALISATIONS = ("sqrt_d", "unit", "none")


@torch.no_grad()
def geometric_median(x: Float[Tensor, "T D"], *, tol: float = 1e-6, max_iters: int = 200) -> Float[Tensor, " D"]:
    """Return the point with the least summed Euclidean distance to the rows of `x`.

    Args:
        x: Activations, one row per token.
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


def measure_scale(x: Float[Tensor, "T D"], normalisation: Normalisation) -> Float[Tensor, ""]:
    """Return the factor that normalises `x`: see `SparseAutoencoder.start_from`."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=torch.promote_types(x.dtype, torch.float32)).double()
    if normalisation == "sqrt_d":
        scale = math.sqrt(x.shape[1]) / norms.mean()
    elif normalisation == "unit":
        scale = 1 / norms.square().mean().sqrt()
    else:
        scale = norms.new_ones(())
    return scale.float()


def random_like(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return normal numbers in a tensor's shape and on its device; drawn on the CPU, where the generator lives."""
    return tensor if tensor.is_meta else torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)
