"""What every metric here shares: sums over all tokens seen, kept in full precision.

Axes: T tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor
from torchmetrics import Metric


class PooledMetric(Metric):
    """A metric whose states keep their dtype wherever the module that holds it is moved.

    `bf16-true` calls `module.to(torch.bfloat16)`, which would leave a float64 sum three digits.
    """

    is_differentiable = False
    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        def moved_only(state: Tensor) -> Tensor:
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(moved.device)

        return super()._apply(moved_only, exclude_state)


class TokenMean(PooledMetric):
    """The mean of a number, or of a vector, over all tokens that count.

    Args:
        shape: Shape of one token's value; empty for a number.
        kwargs: Passed to `torchmetrics.Metric`.
    """

    total: Tensor
    tokens: Tensor

    def __init__(self, *shape: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, values: Shaped[Tensor, "T ..."], mask: Bool[Tensor, " T"] | None = None) -> None:
        """Add tokens; where `mask` is given, only those for which it is true."""
        mask = torch.ones(len(values), dtype=torch.bool, device=values.device) if mask is None else mask
        counts = mask.reshape(-1, *[1] * (values.ndim - 1))
        # `where`, not a product: what does not count may be infinite.
        self.total += torch.where(counts, values, 0).sum(0, dtype=torch.float64)
        self.tokens += mask.sum()

    def compute(self) -> Tensor:
        """Return the mean, float64; NaN where no token counts."""
        return self.total / self.tokens
