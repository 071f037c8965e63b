"""Gated: one path decides which latents fire, another how strongly; they share their encoder directions.

Axes:    T tokens, D width, O width predicted, F latents.
Sources: Rajamanoharan et al. 2024, arXiv:2404.16014, sec. 3 and the pseudo-code of its appendix. Anthropic, "Circuits
         Updates - January 2025": pre-activation loss.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightsae.errors import ConfigError
from lightsae.sae.mechanisms.base import Encoding, Mechanism, Structure
from lightsae.sae.mechanisms.jumprelu import missing, upper_quantile
from lightsae.sae.mechanisms.relu import pre_activations
from lightsae.sae.output import SAEOutput
from lightsae.sae.sites import Widths
from lightsae.sae.usage import LatentUsage


class Gated(Mechanism):
    """One path decides what fires, another how strongly (Rajamanoharan et al. 2024). Loss terms: `mse`, `l1`, `aux`,
    `pre_act`.

    f = H(pi) ReLU(exp(r) W (x - b_dec) + b_mag), pi = W (x - b_dec) + b_enc.
    mse = E mean_O e^2. l1 = E sum ReLU(pi) |d|. aux = E mean_O (x - x_hat')^2, with x_hat' decoded from ReLU(pi) by the
    decoder as it stands: it teaches the gate, which has no other gradient from the error. pre_act =
    sum ReLU(-max_t pi_t) |d| over the latents that are dead, which have no other gradient, each on the token of the
    batch where it lacks least; the source resamples them.

    Args:
        start_l0: Latents per token at the start: gates begin where each latent fires on its share of the tokens.
    """

    competes = False
    default_coefficients: ClassVar[Mapping[str, float]] = {"mse": 1.0, "l1": 1e-2, "aux": 1.0, "pre_act": 1e-3}
    default_warm_up: ClassVar[Mapping[str, float]] = {"l1": 0.05}

    def __init__(self, start_l0: float = 32.0) -> None:
        super().__init__()
        self.start_l0 = start_l0

    def check(self, widths: Widths, d_sae: int) -> None:
        if not self.start_l0 > 0:
            raise ConfigError("start_l0", self.start_l0, "it counts latents per token, so write 1 or more")

    def build(self, d_sae: int) -> None:
        self.r_mag = nn.Parameter(torch.empty(d_sae))
        self.b_mag = nn.Parameter(torch.empty(d_sae))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.r_mag)
        nn.init.zeros_(self.b_mag)

    def start_from(self, pre: Float[Tensor, "T F"], b_enc: Float[Tensor, " F"]) -> None:
        b_enc.sub_(upper_quantile(pre, self.start_l0 / pre.shape[1]).clamp_min(0))

    def change_unit(self, factor: Float[Tensor, " _"]) -> None:
        self.b_mag.mul_(factor)

    def encode(
        self,
        x: Float[Tensor, "T D"],
        centre: Float[Tensor, " D"] | None,
        W_enc: Float[Tensor, "D F"],
        b_enc: Float[Tensor, " F"],
    ) -> Encoding:
        gate = pre_activations(x, centre, W_enc, b_enc)
        magnitude = (gate - b_enc) * self.r_mag.exp() + self.b_mag
        return Encoding(torch.where(gate > 0, magnitude, 0).relu(), gate)

    def loss_terms(
        self, sae: Structure, target: Float[Tensor, "T O"], output: SAEOutput, usage: LatentUsage
    ) -> dict[str, Tensor]:
        assert output.pre is not None
        open_gate = output.pre.relu()
        x_hat = sae.decode_frozen(open_gate, output.x_normalised)
        norms, dead = sae.decoder_norms(), usage.dead_list
        return {
            "mse": sae.squared_error(target, output) / target.shape[1],
            "l1": open_gate.sum(0) @ norms / len(target),
            "aux": sae.refinements.mean((target - x_hat).square().sum(1)) / target.shape[1],
            "pre_act": missing(output.pre[:, dead], 0.0, norms[dead]),
        }

    @torch.no_grad()
    def revive(self, latents: Int[Tensor, " n"]) -> None:
        self.r_mag[latents] = 0
        self.b_mag[latents] = 0
