"""MatchingPursuit: a token's latents are found one after another, each of what those before it leave.

Axes:    T tokens, D width, F latents, n tokens that are not done.
Sources: Mallat & Zhang 1993, "Matching pursuits with time-frequency dictionaries". As the encoder of an SAE, and when a
         token is done: SAELens 6.54.12, architecture `matching_pursuit`.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError, arg
from lightsae.sae.mechanisms.base import Encoding, Mechanism, Structure
from lightsae.sae.output import SAEOutput
from lightsae.sae.sites import Widths
from lightsae.sae.sparse_ops import SparseLatents
from lightsae.sae.usage import LatentUsage


class MatchingPursuit(Mechanism):
    """Greedy search in a dictionary that encoder and decoder share (SAELens). It is opened from files, not trained.

    r = x - b_dec at first. Each step takes the latent i with the largest <r, d_i>, adds v = ReLU(<r, d_i>) to f_i and
    takes v d_i off r. d_i are the columns of `W_enc`, of any norm: the rows of `W_dec`, where the two are tied as in
    files. `b_enc` has no part in it.

    Args:
        residual_threshold: A token is done once |r| is below this, in units of the normalised activations; 0: never
            for that reason.
        max_iterations: Steps of a token at most; null: the width.
        stop_on_duplicate_support: A token is done, too, once a step takes a latent that the token has already.
    """

    unit_norm_decoder = False
    train_instead = "TopK"
    default_coefficients: ClassVar[Mapping[str, float]] = {}
    # A second step and the alignment mend what an encoder of one product misses; without `b_dec` off the input, r would
    # not be what is left to predict; a tilt is for losses.
    refused_refinements = ("aligned", "second_step", "tilt", "centre_input")

    def __init__(
        self,
        residual_threshold: float,
        max_iterations: int | None = None,
        stop_on_duplicate_support: bool = True,
    ) -> None:
        super().__init__()
        self.residual_threshold, self.max_iterations = residual_threshold, max_iterations
        self.stop_on_duplicate_support = stop_on_duplicate_support

    def check(self, widths: Widths, d_sae: int) -> None:
        if widths.read != widths.predicted or len(widths.read) > 1:
            raise ConfigError(f"{arg('mechanism')} is MatchingPursuit, for an SAE that predicts the one site it reads.")
        if not math.isfinite(self.residual_threshold):
            raise ConfigError("residual_threshold", self.residual_threshold, "write a finite number")
        if self.max_iterations is not None and self.max_iterations < 1:
            raise ConfigError("max_iterations", self.max_iterations, "write 1 or more, or null for the width")

    def change_unit(self, factor: Float[Tensor, " _"]) -> None:
        raise AssertionError("units change in trainings, and of latents with units of their own it finds others")

    def encode(
        self,
        x: Float[Tensor, "T D"],
        centre: Float[Tensor, " D"] | None,
        W_enc: Float[Tensor, "D F"],
        b_enc: Float[Tensor, " F"],
    ) -> Encoding:
        left = x if centre is None else x - centre
        latents = left.new_zeros(len(x), W_enc.shape[1])
        going = torch.arange(len(x), device=x.device)
        for _ in range(self.max_iterations or x.shape[1]):
            with torch.no_grad():
                chosen = (left @ W_enc).argmax(1)
            atoms = W_enc.index_select(1, chosen).T
            values = (left * atoms).sum(1).relu()
            # Where nothing is left to add, all further steps would be this one again.
            done = values == 0
            if self.stop_on_duplicate_support:
                done = done | (latents[going, chosen] != 0)
            latents[going, chosen] += values
            left = left - values[:, None] * atoms
            going_on = ~(done | (left.norm(dim=1) < self.residual_threshold))
            going, left = going[going_on], left[going_on]
            if not len(going):
                break
        return Encoding(SparseLatents.from_dense(latents))

    def loss_terms(
        self, sae: Structure, target: Float[Tensor, "T O"], output: SAEOutput, usage: LatentUsage
    ) -> dict[str, Tensor]:
        raise self.not_trained()
