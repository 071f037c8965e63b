"""ReLU with an L1 penalty, in the two forms that were published, and with a penalty that is annealed towards L0.

Axes:    T tokens, D width, F latents.
Sources: free decoder norms: Anthropic, "Circuits Updates - April 2024" (training SAEs). Unit norms: Bricken et al.
         2023, "Towards Monosemanticity", app. "Sparse autoencoder training". p-annealing: Karvonen et al. 2024,
         arXiv:2408.00113.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae.mechanisms.base import Encoding, Mechanism, Structure
from lightsae.sae.output import SAEOutput
from lightsae.sae.ranks import over_all, sum_over_shards
from lightsae.sae.sites import Widths
from lightsae.sae.usage import LatentUsage

DecoderNorm = Literal["free", "unit"]
P_STEPS = 10
# Below this, f^p counts as 0: its slope is infinite there.
SMALLEST = 1e-4


class ReLU(Mechanism):
    """ReLU and L1. Loss terms: `mse`, `l1`. Raise the coefficient of `l1` for fewer latents per token.

    f = ReLU(pre).
    `free`: pre = x W_enc + b_enc; mse = E sum_D e^2; l1 = E sum_i f_i |d_i|. Scaling a row of the decoder up and its
    latent down changes no term, so that the norm needs no constraint.
    `unit`: pre = (x - b_dec) W_enc + b_enc; mse = E mean_D e^2; l1 = E sum_i f_i; |d_i| = 1.
    With `p_end` below 1, l1 becomes E sum (f_i |d_i|)^p: p falls from 1 to `p_end` in ten steps, and at each the term
    is rescaled so that its value stays what it was.

    Args:
        decoder_norm: `free`: decoder rows of any norm, the norm in the penalty (Anthropic, April 2024). `unit`: rows of
            norm 1 (Bricken et al. 2023).
        p_end: With less than 1, the penalty becomes sum f^p, and p falls from 1 to this. Published: 0.2.
        p_begin: Where that fall begins, a share of the run.
    """

    competes = False
    default_warm_up: ClassVar[Mapping[str, float]] = {"l1": 0.05}
    p: Tensor
    rescale: Tensor

    def __init__(self, decoder_norm: DecoderNorm = "free", p_end: float = 1.0, p_begin: float = 0.2) -> None:
        super().__init__()
        self.unit_norm_decoder = self.centres_input = decoder_norm == "unit"
        self.initial_decoder_norm = 1.0 if self.unit_norm_decoder else 0.1
        self.decoder_norm, self.p_end, self.p_begin = decoder_norm, p_end, p_begin

    @property
    def default_coefficients(self) -> Mapping[str, float]:  # type: ignore[override]
        return {"mse": 1.0, "l1": 3.5e-3 if self.unit_norm_decoder else 5.0}

    def check(self, widths: Widths, d_sae: int) -> None:
        if self.decoder_norm not in ("free", "unit"):
            raise ConfigError("decoder_norm", self.decoder_norm, "write 'free' or 'unit'")
        if not 0 < self.p_end <= 1:
            raise ConfigError("p_end", self.p_end, "write a power above 0 and up to 1")
        if not 0 <= self.p_begin < 1:
            raise ConfigError("p_begin", self.p_begin, "write a share of the run, from 0 up and below 1")

    def build(self, d_sae: int) -> None:
        if self.p_end < 1:
            self.register_buffer("p", torch.ones(()))
            self.register_buffer("rescale", torch.ones(()))
            self._penalties: list[Tensor] = []

    def reset_parameters(self) -> None:
        if self.p_end < 1:
            self.p.fill_(1)
            self.rescale.fill_(1)

    @property
    def present_p(self) -> float:
        """The power that belongs to the present progress."""
        done = (self.progress - self.p_begin) / (1 - self.p_begin)
        return 1 - (1 - self.p_end) * min(P_STEPS, max(0, int(done * P_STEPS + 1))) / P_STEPS

    def encode(
        self,
        x: Float[Tensor, "T D"],
        centre: Float[Tensor, " D"] | None,
        W_enc: Float[Tensor, "D F"],
        b_enc: Float[Tensor, " F"],
    ) -> Encoding:
        return Encoding(pre_activations(x, centre, W_enc, b_enc).relu())

    def loss_terms(
        self, sae: Structure, target: Float[Tensor, "T O"], output: SAEOutput, usage: LatentUsage
    ) -> dict[str, Tensor]:
        latents = output.latents
        assert isinstance(latents, Tensor)
        squared = sae.squared_error(target, output)
        mse = squared / target.shape[1] if self.unit_norm_decoder else squared
        if self.p_end < 1:
            return {
                "mse": mse,
                "l1": self._annealed(latents if self.unit_norm_decoder else latents * sae.decoder_norms()),
            }
        # Sum over tokens first: one pass over (T, F), and the norms meet a vector only.
        firing = latents.sum(0, dtype=torch.float32 if latents.dtype == torch.bfloat16 else None) / len(latents)
        l1 = firing.sum() if self.unit_norm_decoder else firing @ sae.decoder_norms()
        return {"mse": mse, "l1": sum_over_shards(l1)}

    def _annealed(self, strengths: Float[Tensor, "T F"]) -> Tensor:
        penalty = sum_over_shards(power_sum(strengths, self.p)) * self.rescale
        if self.training:
            fixed = strengths.detach()
            self._penalties.append(torch.stack([power_sum(fixed, self.p), power_sum(fixed, self.present_p)]))
        return penalty

    @torch.no_grad()
    def commit(self) -> None:
        if self.p_end == 1:
            return
        before, after = (over_all(total, "sum") for total in torch.stack(self._penalties).sum(0).unbind())
        self._penalties.clear()
        p = torch.full_like(self.p, self.present_p)
        # Between the ten steps nothing moves, not by a rounding error; and a batch on which nothing fires says nothing.
        ratio = torch.where((p != self.p) & (after > 0), before / after, 1)
        self.rescale.mul_(ratio)
        self.p.copy_(p)


def pre_activations(
    x: Float[Tensor, "T D"],
    centre: Float[Tensor, " D"] | None,
    W_enc: Float[Tensor, "D F"],
    b_enc: Float[Tensor, " F"],
) -> Float[Tensor, "T F"]:
    """Return (x - centre) W_enc + b_enc.

    Written so that the gradient of `centre` is one vector-matrix product, not a full one, and that a large mean is
    subtracted before the product, not after it.
    """
    if centre is None:
        return torch.addmm(b_enc, x, W_enc)
    fixed = centre.detach()
    return torch.addmm(b_enc + (fixed - centre) @ W_enc, x - fixed, W_enc)


def power_sum(strengths: Float[Tensor, "T F"], p: Tensor | float) -> Float[Tensor, ""]:
    """Return the mean over tokens of sum_i f_i^p."""
    powers = torch.where(strengths > SMALLEST, strengths.clamp_min(SMALLEST).pow(p), 0)
    return powers.sum() / len(strengths)
