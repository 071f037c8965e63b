"""TopK: each token keeps its k largest latents. AuxK brings dead latents back.

Axes:    T tokens, D width, F dictionary size.
Source:  Gao et al. 2024, arXiv:2406.04093, sec. 2.3 (TopK), app. A.2 (AuxK).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae.mechanisms.base import Mechanism
from lightsae.sae.sites import Widths
from lightsae.sae.sparse_ops import SparseLatents, SparsePattern, encode_selected
from lightsae.sae.usage import LatentUsage

if TYPE_CHECKING:
    from lightsae.sae.base import SAEOutput, SparseAutoencoder


class TopKMechanism(Mechanism):
    """Sparsity comes from selection, so there is no sparsity term in the loss. Terms: `mse` and `auxk`.

    mse = sum e^2 / sum (x - mean x)^2 over the batch. auxk = sum (e - e_hat)^2 / sum e^2, where the error e is a fixed
    target and e_hat is decoded from each token's `k_aux` largest dead latents; 0 while no latent is dead.

    Args:
        k: Latents kept for each token.
        k_aux: Dead latents that predict the error of a token; None: the power of two nearest to half the width.
    """

    default_coefficients: ClassVar[Mapping[str, float]] = {"mse": 1.0, "auxk": 1 / 32}

    def __init__(self, k: int, k_aux: int | None = None) -> None:
        super().__init__()
        self.k, self.k_aux = k, k_aux

    def check(self, widths: Widths, d_sae: int) -> None:
        if not 0 < self.k <= d_sae:
            raise ConfigError(f"model.sae.k is {self.k}; it must lie in 1..d_sae ({d_sae}).")
        if self.k_aux is not None and self.k_aux < 1:
            raise ConfigError(f"model.sae.k_aux is {self.k_aux}; it must be 1 or more (leave it out for the default).")

    def latents(
        self,
        x: Float[Tensor, "T D"],
        centre: Float[Tensor, " D"] | None,
        W_enc: Float[Tensor, "D F"],
        b_enc: Float[Tensor, " F"],
    ) -> SparseLatents:
        return encode_selected(x, centre, W_enc, b_enc, self.select)

    def select(self, pre: Float[Tensor, "T F"]) -> tuple[Tensor, SparsePattern]:
        """Keep each row's k largest; one that is not positive counts as 0."""
        values, indices = pre.topk(self.k, dim=1, sorted=False)
        return values.relu().flatten(), SparsePattern.from_rows(indices, pre.shape[1])

    def loss_terms(
        self, sae: "SparseAutoencoder", target: Float[Tensor, "T O"], output: "SAEOutput", usage: LatentUsage
    ) -> dict[str, Tensor]:
        error = target - output.x_hat_normalised
        spread = (target - target.mean(0)).square().sum().clamp_min(torch.finfo(target.dtype).tiny)
        terms = {"mse": error.square().sum() / spread}
        terms["auxk"] = self._auxk(sae, output.x_normalised, error.detach(), usage.dead_list)
        return terms

    def _auxk(self, sae: "SparseAutoencoder", x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        if len(dead) == 0:
            return error.new_zeros(())
        if self.centres_input:
            x = x - sae.b_dec
        latents = torch.addmm(sae.b_enc[dead], x, sae.W_enc[:, dead]).relu()
        k_aux = self.k_aux or nearest_power_of_two(sae.d_in / 2)
        if k_aux < len(dead):
            values, indices = latents.topk(k_aux, dim=1, sorted=False)
            latents = torch.zeros_like(latents).scatter(1, indices, values)
        predicted = latents @ sae.W_dec[dead]
        return (error - predicted).square().sum() / error.square().sum().clamp_min(torch.finfo(error.dtype).tiny)


def nearest_power_of_two(value: float) -> int:
    """Return the power of two nearest to `value`, 1 at the least."""
    lower = 1 << max(0, int(value).bit_length() - 1)
    return lower if value - lower <= 2 * lower - value else 2 * lower
