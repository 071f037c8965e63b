"""GroupMax: the latents stand in k groups, and of each group a token keeps the largest.

Axes:    T tokens, F latents, N kept latents.
Source:  EleutherAI's library sparsify, version 1.3.3, activation "groupmax".
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError, arg
from lightsae.sae.mechanisms.topk import TopK
from lightsae.sae.sites import Widths
from lightsae.sae.sparse_ops import SparsePattern


class GroupMax(TopK):
    """Each token keeps the largest latent of each of k groups of d_sae / k neighbours. Loss terms: `mse`, `auxk`.

    A maximum over a group costs less than a search for the k largest of all; but two latents of one group can't fire
    together. Loss terms as TopK's.

    Args:
        k: Groups, and so latents kept for each token; `d_sae` is a multiple of it.
        k_aux: Dead latents that learn from the error of a token; null: the power of two nearest to half the width.
    """

    def __init__(self, k: int, k_aux: int | None = None) -> None:
        super().__init__(k, k_aux)

    def check(self, widths: Widths, d_sae: int) -> None:
        super().check(widths, d_sae)
        if d_sae % self.k:
            raise ConfigError(
                f"{arg('k')} is {self.k}, and {d_sae} latents ({arg('d_sae')}) are not {self.k} groups of one size; "
                f"write a divisor of {d_sae}."
            )

    def select(self, pre: Float[Tensor, "T F"]) -> tuple[Float[Tensor, " N"], SparsePattern]:
        """Keep each group's largest; one that is not positive counts as 0."""
        width = pre.shape[1]
        values, places = pre.unflatten(1, (self.k, width // self.k)).max(dim=2)
        firsts = torch.arange(0, width, width // self.k, device=pre.device)
        return values.relu().flatten(), SparsePattern.from_rows(firsts + places, width)
