"""TopK: each token keeps its k largest latents. AuxK brings dead latents back.

Axes:    T tokens, D width, F latents, N kept latents.
Sources: Gao et al. 2024, arXiv:2406.04093: sec. 2.3 (TopK), app. A.2 (AuxK), app. A.4 (Multi-TopK). Falling k: He et
         al. 2024, "Llama Scope", arXiv:2410.20526.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae import kernels
from lightsae.sae.mechanisms.base import Encoding, Mechanism, Structure
from lightsae.sae.output import SAEOutput
from lightsae.sae.ranks import largest_of_rows, over_batch, over_shards, shards, sum_over_shards
from lightsae.sae.sites import Widths
from lightsae.sae.sparse_ops import SparsePattern, encode_selected
from lightsae.sae.usage import LatentUsage


class TopK(Mechanism):
    """Each token keeps its k largest latents (Gao et al. 2024). Loss terms: `mse`, `auxk`; with `multi_k`, `multi`.

    mse = sum e^2 / sum (x - mean x)^2 over the batch. auxk = sum (e - e_hat)^2 / sum e^2, where the error e is a fixed
    target and e_hat is decoded from each token's `k_aux` largest dead latents; 0 while no latent is dead. multi is the
    mse of a reconstruction from `multi_k` latents.

    Args:
        k: Latents kept for each token.
        k_aux: Dead latents that learn from the error of a token; null: the power of two nearest to half the width.
        k_start: Begin with this many latents per token and fall linearly to k; null: k from the start.
        k_fall: Length of that fall, a share of the run.
        multi_k: Latents per token in the term `multi`, which keeps reconstructions from more latents good, 4 k for
            example; null: no such term.
    """

    has_auxk = True
    adam_eps = 6.25e-10

    def __init__(
        self,
        k: int,
        k_aux: int | None = None,
        k_start: int | None = None,
        k_fall: float = 0.5,
        multi_k: int | None = None,
    ) -> None:
        super().__init__()
        self.k, self.k_aux, self.k_start, self.k_fall, self.multi_k = k, k_aux, k_start, k_fall, multi_k

    @property
    def default_coefficients(self) -> Mapping[str, float]:  # type: ignore[override]
        return {"mse": 1.0, "auxk": 1 / 32} | ({"multi": 1 / 8} if self.multi_k is not None else {})

    def check(self, widths: Widths, d_sae: int) -> None:
        for name in ("k", "k_start", "multi_k"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= d_sae:
                raise ConfigError(name, value, f"it must lie in 1..d_sae ({d_sae})")
        if self.k_aux is not None and self.k_aux < 1:
            raise ConfigError("k_aux", self.k_aux, "it must be 1 or more (leave it out for the default)")
        if not 0 < self.k_fall <= 1:
            raise ConfigError("k_fall", self.k_fall, "write a share of the run, above 0 and up to 1")

    @property
    def present_k(self) -> int:
        """Latents per token now: falling in training, k at inference."""
        if self.k_start is None or not self.training:
            return self.k
        return round(self.k + (self.k_start - self.k) * max(0.0, 1 - self.progress / self.k_fall))

    def encode(
        self,
        x: Float[Tensor, "T D"],
        centre: Float[Tensor, " D"] | None,
        W_enc: Float[Tensor, "D F"],
        b_enc: Float[Tensor, " F"],
    ) -> Encoding:
        return Encoding(encode_selected(x, centre, W_enc, b_enc, self.select))

    def select(self, pre: Float[Tensor, "T F"]) -> tuple[Float[Tensor, " N"], SparsePattern]:
        """Keep each row's k largest; one that is not positive counts as 0."""
        return largest_of_each(pre, self.present_k)

    def loss_terms(
        self, sae: Structure, target: Float[Tensor, "T O"], output: SAEOutput, usage: LatentUsage
    ) -> dict[str, Tensor]:
        squares = (target - over_batch(target.mean(0), "mean")).square().sum()
        spread = over_batch(squares, "mean").clamp_min(torch.finfo(target.dtype).tiny) / len(target)
        error = (target - output.x_hat_normalised).detach()
        terms = {"mse": sae.squared_error(target, output) / spread}
        terms["auxk"] = self._auxk(sae, output.x_normalised, error, usage.dead_list)
        if self.multi_k is not None:
            x_hat = sae.reconstruct_with(output.x_normalised, lambda pre: self.select_many(pre, self.multi_k or self.k))
            terms["multi"] = sae.refinements.mean((target - x_hat).square().sum(1)) / spread
        return terms

    def select_many(self, pre: Float[Tensor, "T F"], k: int) -> tuple[Float[Tensor, " N"], SparsePattern]:
        """Select as `select` does, but k latents per token."""
        return largest_of_each(pre, k)

    def _auxk(
        self, sae: Structure, x: Float[Tensor, "T D"], error: Float[Tensor, "T O"], dead: Int[Tensor, " n"]
    ) -> Tensor:
        number = int(over_shards(torch.tensor(len(dead), device=x.device), "sum")) if shards() > 1 else len(dead)
        if number == 0:
            return error.new_zeros(())
        if sae.centre is not None:
            x = x - sae.centre
        latents = torch.addmm(sae.b_enc[dead], x, sae.W_enc[:, dead]).relu()
        k_aux = self.k_aux or nearest_power_of_two(sae.d_in / 2)
        if k_aux < number:
            values, indices = largest_of_rows(latents, k_aux)
            latents = torch.zeros_like(latents).scatter(1, indices, values)
        predicted = sum_over_shards(latents @ sae.W_dec[dead])
        squares = over_batch(error.square().sum(), "mean")
        return (error - predicted).square().sum() / squares.clamp_min(torch.finfo(error.dtype).tiny)


def largest_of_each(pre: Float[Tensor, "T F"], k: int) -> tuple[Float[Tensor, " N"], SparsePattern]:
    """Keep each row's k largest; one that is not positive counts as 0."""
    if shards() == 1 and kernels.used_for(pre):
        from lightsae.sae.kernels.topk import topk_relu

        values, indices = topk_relu(pre, k)
    else:
        values, indices = largest_of_rows(pre, k)
    return values.relu().flatten(), SparsePattern.from_rows(indices, pre.shape[1])


def nearest_power_of_two(value: float) -> int:
    """Return the power of two nearest to `value`, 1 at the least.

    >>> [nearest_power_of_two(value) for value in (0.4, 5.0, 6.0, 96.0, 384.0)]
    [1, 4, 4, 64, 256]
    """
    lower = 1 << max(0, int(value).bit_length() - 1)
    return lower if value - lower <= 2 * lower - value else 2 * lower
