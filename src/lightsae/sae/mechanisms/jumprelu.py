"""JumpReLU: a latent fires where its pre-activation is above a threshold of its own, which is learned.

Axes:    T tokens, D width, O width predicted, F dictionary size.
Sources: Rajamanoharan et al. 2024, arXiv:2407.14435: step penalty, and in its appendix the target L0. Anthropic,
         "Circuits Updates - January 2025": tanh penalty and pre-activation loss.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightsae.errors import ConfigError
from lightsae.sae.mechanisms.base import Encoding, Mechanism
from lightsae.sae.mechanisms.relu import pre_activations
from lightsae.sae.sites import Widths
from lightsae.sae.straight_through import jump_relu, mean_count
from lightsae.sae.usage import LatentUsage

if TYPE_CHECKING:
    from lightsae.sae.base import SAEOutput, SparseAutoencoder

Penalty = Literal["step", "tanh"]
TANH_SCALE = 4.0


class JumpReLU(Mechanism):
    """f = z H(z - theta), z the pre-activations. Terms: `mse`, `l0` (or `tanh`) and `pre_act`.

    mse = E mean_O e^2. l0 = E sum_i H(z_i - theta_i); with `target_l0` (E sum_i H(z_i - theta_i) / target - 1)^2.
    tanh = E sum_i tanh(4 f_i |d_i|). pre_act = E sum ReLU(theta_i - z_i) |d_i| over the latents that are dead, which have no
    other gradient (the source sums over all latents, with a weight so small that it matters to dead ones alone).

    Args:
        penalty: `step` or `tanh`.
        target_l0: Latents a token to aim at, with the step penalty; null: as many as the coefficient leaves.
        threshold: Of every latent at the start, in units of the normalised activations.
        bandwidth: Of the kernel through which thresholds learn, in the same units. With the data's default
            normalisation, pre-activations of a fresh dictionary have a spread of about 1; with `unit` divide both by
            sqrt(width).
    """

    def __init__(
        self,
        penalty: Penalty = "step",
        target_l0: float | None = None,
        threshold: float = 0.1,
        bandwidth: float = 1.0,
    ) -> None:
        super().__init__()
        self.penalty, self.target_l0, self.threshold, self.bandwidth = penalty, target_l0, threshold, bandwidth

    @property
    def default_coefficients(self) -> Mapping[str, float]:  # type: ignore[override]
        if self.penalty == "tanh":
            return {"mse": 1.0, "tanh": 4e-3, "pre_act": 1e-3}
        return {"mse": 1.0, "l0": 4e-3 if self.target_l0 is None else 1.0, "pre_act": 1e-3}

    @property
    def default_warm_up(self) -> Mapping[str, float]:  # type: ignore[override]
        return {"tanh": 1.0} if self.penalty == "tanh" else {"l0": 0.2}

    def check(self, widths: Widths, d_sae: int) -> None:
        if self.penalty not in ("step", "tanh"):
            raise ConfigError(f"{self.key}.penalty is {self.penalty!r}; write 'step' or 'tanh'.")
        if self.target_l0 is not None and not 0 < self.target_l0 <= d_sae:
            raise ConfigError(f"{self.key}.target_l0 is {self.target_l0}; it must lie above 0, up to d_sae ({d_sae}).")
        if self.target_l0 is not None and self.penalty != "step":
            raise ConfigError(f"{self.key}.target_l0 goes with {self.key}.penalty step, which is {self.penalty!r}.")
        for name in ("threshold", "bandwidth"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{self.key}.{name} is {getattr(self, name)}; it must be above 0.")

    def build(self, d_sae: int) -> None:
        self.log_threshold = nn.Parameter(torch.empty(d_sae))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log_threshold, math.log(self.threshold))

    def encode(
        self,
        x: Float[Tensor, "T D"],
        centre: Float[Tensor, " D"] | None,
        W_enc: Float[Tensor, "D F"],
        b_enc: Float[Tensor, " F"],
    ) -> Encoding:
        pre = pre_activations(x, centre, W_enc, b_enc)
        return Encoding(jump_relu(pre, self.log_threshold.exp(), self.bandwidth), pre)

    def loss_terms(
        self, sae: "SparseAutoencoder", target: Float[Tensor, "T O"], output: "SAEOutput", usage: LatentUsage
    ) -> dict[str, Tensor]:
        assert isinstance(output.latents, Tensor)
        assert output.pre is not None
        terms = {"mse": sae.squared_error(target, output) / target.shape[1]}
        if self.penalty == "tanh":
            terms["tanh"] = (TANH_SCALE * output.latents * sae.decoder_norms()).tanh().sum() / len(target)
        else:
            count = mean_count(output.pre, self.log_threshold.exp(), self.bandwidth)
            terms["l0"] = count if self.target_l0 is None else (count / self.target_l0 - 1).square()
        dead = usage.dead_list
        missing = (self.log_threshold[dead].exp() - output.pre[:, dead]).relu() * sae.decoder_norms()[dead]
        terms["pre_act"] = missing.sum() / len(target)
        return terms

    @torch.no_grad()
    def revive(self, latents: Int[Tensor, " n"]) -> None:
        self.log_threshold[latents] = math.log(self.threshold)
