"""JumpReLU: a latent fires where its pre-activation is above a threshold of its own, which is learned.

Axes:    T tokens, D width, O width predicted, F latents.
Sources: Rajamanoharan et al. 2024, arXiv:2407.14435: step penalty, and in its appendix the target L0. Anthropic,
         "Circuits Updates - January 2025": tanh penalty and pre-activation loss.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightsae.errors import ConfigError, arg
from lightsae.sae.mechanisms.base import Encoding, Mechanism, Structure
from lightsae.sae.mechanisms.relu import pre_activations
from lightsae.sae.output import SAEOutput
from lightsae.sae.ranks import over_batch, ranks_of_batch, sum_over_shards, with_value_of_batch
from lightsae.sae.sites import Widths
from lightsae.sae.straight_through import jump_relu, mean_count
from lightsae.sae.usage import LatentUsage

Penalty = Literal["step", "tanh"]
TANH_SCALE = 4.0
THRESHOLD = 0.1
WHOLE_RUN = 0.999


class JumpReLU(Mechanism):
    """A latent fires above a threshold of its own. Loss terms: `mse`, `l0_penalty` (or `tanh`), `pre_act`.

    f = z H(z - theta), z the pre-activations.
    mse = E mean_O e^2. l0_penalty = E sum_i H(z_i - theta_i); with `target_l0` (E sum_i H(...) / target - 1)^2.
    tanh = E sum_i tanh(4 f_i |d_i|). pre_act = sum ReLU(theta_i - max_t z_ti) |d_i| over the latents that are dead,
    which have no other gradient, each on the token of the batch where it lacks least (the source takes the mean over
    all tokens, of all latents, with a weight so small that only dead ones feel it).

    Thresholds start where each latent fires on its share of a sample's tokens: features that are found while nearly
    everything fires stay mixtures when the penalty has thinned them out.

    Args:
        penalty: `step`: the number of latents that fire (Rajamanoharan et al. 2024). `tanh`: a smooth count (Anthropic,
            January 2025).
        target_l0: Latents per token to aim at, with the step penalty; null: raise the coefficient of `l0_penalty` for
            fewer.
        start_l0: Latents per token at the start: thresholds begin where each latent fires on its share of the tokens.
        bandwidth: Width of the kernel through which thresholds learn, in units of the normalised activations; with
            data.normalisation unit, divide it by sqrt(width).
    """

    competes = False

    def __init__(
        self,
        penalty: Penalty = "step",
        target_l0: float | None = None,
        start_l0: float = 32.0,
        bandwidth: float = 2.0,
    ) -> None:
        super().__init__()
        self.penalty, self.target_l0, self.start_l0, self.bandwidth = penalty, target_l0, start_l0, bandwidth

    @property
    def default_coefficients(self) -> Mapping[str, float]:  # type: ignore[override]
        if self.penalty == "tanh":
            return {"mse": 1.0, "tanh": 4e-3, "pre_act": 1e-3}
        # Published for a target: 1. The error then holds L0 above it, by 8% in a run of 600 steps.
        return {"mse": 1.0, "l0_penalty": 4e-3 if self.target_l0 is None else 10.0, "pre_act": 1e-3}

    @property
    def default_warm_up(self) -> Mapping[str, float]:  # type: ignore[override]
        # Over the whole run: 1.0 would be one step.
        return (
            {"tanh": WHOLE_RUN}
            if self.penalty == "tanh"
            else {"l0_penalty": WHOLE_RUN if self.target_l0 is None else 0.5}
        )

    def check(self, widths: Widths, d_sae: int) -> None:
        if self.penalty not in ("step", "tanh"):
            raise ConfigError("penalty", self.penalty, "write 'step' or 'tanh'")
        if self.target_l0 is not None and not 0 < self.target_l0 <= d_sae:
            raise ConfigError("target_l0", self.target_l0, f"it must lie above 0, up to d_sae ({d_sae})")
        if self.target_l0 is not None and self.penalty != "step":
            raise ConfigError(f"{arg('target_l0')} goes with {arg('penalty')} step, which is {self.penalty!r}.")
        if self.bandwidth <= 0:
            raise ConfigError("bandwidth", self.bandwidth, "it must be above 0")
        if not self.start_l0 > 0:
            raise ConfigError("start_l0", self.start_l0, "it counts latents per token, so write 1 or more")

    def build(self, d_sae: int) -> None:
        self.log_threshold = nn.Parameter(torch.empty(d_sae))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log_threshold, math.log(THRESHOLD))

    def start_from(self, pre: Float[Tensor, "T F"], b_enc: Float[Tensor, " F"]) -> None:
        self.log_threshold.copy_(upper_quantile(pre, self.start_l0 / pre.shape[1]).clamp_min(THRESHOLD).log())

    def change_unit(self, factor: Float[Tensor, " _"]) -> None:
        self.log_threshold.add_(factor.log())

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
        self, sae: Structure, target: Float[Tensor, "T O"], output: SAEOutput, usage: LatentUsage
    ) -> dict[str, Tensor]:
        assert isinstance(output.latents, Tensor)
        assert output.pre is not None
        terms = {"mse": sae.squared_error(target, output) / target.shape[1]}
        if self.penalty == "tanh":
            strengths = (TANH_SCALE * output.latents * sae.decoder_norms()).tanh()
            terms["tanh"] = sum_over_shards(strengths.sum()) / len(target)
        else:
            count = sum_over_shards(mean_count(output.pre, self.log_threshold.exp(), self.bandwidth))
            if self.target_l0 is not None:
                # The square of a mean over all tokens is not the mean of the ranks' squares.
                count = (with_value_of_batch(count) / self.target_l0 - 1).square()
            terms["l0_penalty"] = count
        dead = usage.dead_list
        lacking = missing(output.pre[:, dead], self.log_threshold[dead].exp(), sae.decoder_norms()[dead])
        terms["pre_act"] = sum_over_shards(lacking)
        return terms

    @torch.no_grad()
    def revive(self, latents: Int[Tensor, " n"]) -> None:
        self.log_threshold[latents] = self.log_threshold.median()


def missing(
    pre: Float[Tensor, "T F"], threshold: Float[Tensor, " F"] | float, norms: Float[Tensor, " F"]
) -> Float[Tensor, ""]:
    """Return sum_i min_t ReLU(theta_i - z_ti) |d_i|: what latents lack to fire on the token where they lack least.

    The sources take the mean over all tokens, whose gradients nearly cancel out, and pull a latent to what all tokens
    have in common.
    """
    nearest = pre.amax(0)
    lacking = (threshold - nearest).relu() * norms
    if ranks_of_batch() > 1:
        # The token is one of the whole batch: its rank speaks for all, whose mean is taken.
        here = (nearest == over_batch(nearest, "max")).to(lacking.dtype)
        lacking = lacking * here / over_batch(here, "mean")
    return lacking.sum()


def upper_quantile(pre: Float[Tensor, "T F"], share: float) -> Float[Tensor, " F"]:
    """Return, for each latent, the value that this share of its pre-activations lies above."""
    place = min(len(pre), max(1, round(len(pre) * (1 - share))))
    return pre.kthvalue(place, dim=0).values
