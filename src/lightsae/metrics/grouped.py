"""How well an SAE reconstructs each of several groups of tokens: roles of a conversation, datasets of a mixture.

Axes: T tokens, D width, F latents, G groups.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lightsae.metrics.pooled import PooledMetric
from lightsae.metrics.reconstruction import ReconstructionSums, merge, merge_packed, reconstruction_sums


class GroupedReconstruction(PooledMetric):
    """Figures of each group, pooled over all of its tokens.

    `compute` returns `fve/NAME`, `fve_no_sinks/NAME`, `l0/NAME`, `dead_fraction/NAME` (share of the latents that fire
    on no token of the group) and `tokens/NAME`, for the groups that have tokens. FVE is around the group's own mean.

    Args:
        names: Of the groups, in the order of their numbers.
        width: D.
        d_sae: F.
        kwargs: Passed to `torchmetrics.Metric`.
    """

    packed: Tensor
    firings: Tensor

    def __init__(self, names: Sequence[str], width: int, d_sae: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        count = len(self.names)
        # Ordinary tokens and sinks.
        self.add_state("packed", torch.zeros(2, count, 7 + width, dtype=torch.float64), dist_reduce_fx=merge_packed)
        self.add_state("firings", torch.zeros(count, d_sae, dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        x: Float[Tensor, "T D"],
        x_hat: Float[Tensor, "T D"],
        fired: Shaped[Tensor, " T"],
        firings: Int[Tensor, "G F"],
        groups: Shaped[Tensor, " T"],
        sinks: Bool[Tensor, " T"],
    ) -> None:
        """Add a batch.

        Args:
            x: Activations.
            x_hat: Their reconstructions.
            fired: Number of latents that fire on each token.
            firings: On how many tokens of each group each latent fires.
            groups: Number of each token's group.
            sinks: Which tokens are attention sinks.
        """
        members = groups[None] == torch.arange(len(self.names), device=groups.device)[:, None]
        # The first group is the one whose mean all are centred by.
        rows = torch.cat([~sinks[None], members & ~sinks, members & sinks])
        sums = reconstruction_sums(x, x_hat, fired, rows).pack()[1:].unflatten(0, (2, len(self.names)))
        self.packed = merge_packed(torch.stack([self.packed, sums]))
        self.firings += firings

    def compute(self) -> dict[str, Tensor]:
        parts = ReconstructionSums.unpack(self.packed)
        everything, no_sinks = merge(parts), ReconstructionSums.unpack(self.packed[0])
        figures: dict[str, Tensor] = {}
        for group, name in enumerate(self.names):
            if everything.tokens[group] > 0:
                figures[f"fve/{name}"] = everything.fve[group]
                figures[f"fve_no_sinks/{name}"] = no_sinks.fve[group]
                figures[f"l0/{name}"] = everything.l0[group]
                figures[f"dead_fraction/{name}"] = (self.firings[group] == 0).double().mean()
                figures[f"tokens/{name}"] = everything.tokens[group]
        return figures
