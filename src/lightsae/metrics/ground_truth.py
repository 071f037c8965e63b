"""An SAE held against the true features of synthetic data: which it has found, and does it know when they fire.

Axes:    F latents, n true features, D width, M matched pairs (the smaller of F and n), N firings.
Units:   all scores lie in 0..1; 1 is the truth itself.
Sources: mean correlation coefficient after Hungarian matching, and latents as detectors: SynthSAEBench,
         arXiv:2602.14687. Share of features at |cosine| > 0.9: Sharkey, Braun & Millidge 2022, "Taking features out of
         superposition with sparse autoencoders".
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightsae.metrics.conventions import NO_PARTNER, assign
from lightsae.metrics.pooled import PooledMetric


class Matching(NamedTuple):
    """Pairs of one latent and one true feature each, such that the sum of |cosine| is the largest there is.

    Attributes:
        latents: Of each pair.
        features: Of each pair.
        cosines: |cosine| between the two.
    """

    latents: Int[Tensor, " M"]
    features: Int[Tensor, " M"]
    cosines: Float[Tensor, " M"]

    @property
    def mcc(self) -> Float[Tensor, ""]:
        """Mean |cosine| of the pairs."""
        return self.cosines.double().mean()

    def recovered(self, features: int, threshold: float = 0.9) -> Bool[Tensor, " n"]:
        """Return which of the `features` true features have a partner at |cosine| above the threshold."""
        close = torch.zeros(features, dtype=torch.bool)
        close[self.features] = self.cosines > threshold
        return close


def match(directions: Float[Tensor, "F D"], features: Float[Tensor, "n D"]) -> Matching:
    """Match latents with true features one to one. On the CPU; 4,096 latents and 16,384 features take seconds.

    Args:
        directions: Decoder rows, of any length. A zero row has cosine 0 with everything.
        features: True directions, of any length.
    """
    cosines = (F.normalize(directions.detach().float(), dim=1) @ F.normalize(features.float(), dim=1).T).abs().cpu()
    partners = torch.from_numpy(assign(cosines.numpy()))
    rows = (partners != NO_PARTNER).nonzero().squeeze(1)
    return Matching(rows, partners[rows], cosines[rows, partners[rows]])


def detection(
    both: Int[Tensor, " M"], latent: Int[Tensor, " M"], feature: Int[Tensor, " M"]
) -> dict[str, Float[Tensor, " M"]]:
    """Return `f1`, `precision` and `recall` of each latent as a detector of its feature.

    Args:
        both: On how many tokens both fire.
        latent: On how many tokens the latent fires. A latent that never does has precision 0.
        feature: On how many tokens the feature fires. Where it never does, there is nothing to detect: NaN.
    """
    present = torch.where(feature > 0, 1.0, math.nan).double()
    return {
        "f1": present * 2 * both / (latent + feature),
        "precision": present * both / latent.clamp_min(1),
        "recall": present * both / feature,
    }


def decades(probabilities: Float[Tensor, " n"]) -> dict[str, Bool[Tensor, " n"]]:
    """Return which features fire how often, by powers of ten: `1e-3` are those from 1e-3 up to 1e-2."""
    # 0.001 has the logarithm -3 only roughly, and more so in float32.
    exponents = (probabilities.double().log10() + 1e-6).floor().long()
    return {f"1e{exponent}": exponents == exponent for exponent in exponents.unique().tolist()}


class GroundTruthScores(PooledMetric):
    """Everything that says how much of the truth an SAE has, firing pooled over all tokens seen.

    `compute` returns `mcc`, `recovered`, `f1`, `precision` and `recall` (means over matched pairs), `recovered` and
    `f1` by decade of the true firing probability (`recovered_1e-3`), and, where there are fewer latents than features,
    `recovered_most_frequent`: among as many of the most frequent features as there are latents. Figures of no pairs
    are NaN.

    Args:
        directions: Decoder rows, which must not change while tokens are added.
        features: The true directions.
        probabilities: Share of the tokens on which each feature fires.
        threshold: |cosine| above which a feature counts as recovered.
        kwargs: Passed to `torchmetrics.Metric`.
    """

    both: Tensor
    latent: Tensor
    feature: Tensor
    partner: Tensor

    def __init__(
        self,
        directions: Float[Tensor, "F D"],
        features: Float[Tensor, "n D"],
        probabilities: Float[Tensor, " n"],
        threshold: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.matching, self.probabilities, self.threshold = match(directions, features), probabilities, threshold
        self.latents, self.features = len(directions), len(features)
        # The feature of each latent, or -1.
        partner = torch.full((self.latents,), -1)
        partner[self.matching.latents] = self.matching.features
        self.register_buffer("partner", partner, persistent=False)
        for name in ("both", "latent", "feature"):
            self.add_state(name, torch.zeros(self.features, dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        tokens: Int[Tensor, " N"],
        latents: Int[Tensor, " N"],
        true_tokens: Int[Tensor, " N_true"],
        true_features: Int[Tensor, " N_true"],
    ) -> None:
        """Add a batch: the token and latent of every firing, and the token and feature of every true one."""
        detected = self.partner[latents]
        matched = detected >= 0
        tokens, detected = tokens[matched], detected[matched]
        places, true_places = tokens * self.features + detected, true_tokens * self.features + true_features
        hits = true_features[torch.isin(true_places, places, assume_unique=True)]
        for state, fired in ((self.both, hits), (self.latent, detected), (self.feature, true_features)):
            state.scatter_add_(0, fired, torch.ones_like(fired))

    def compute(self) -> dict[str, Tensor]:
        pairs = self.matching.features
        counts = [state.cpu()[pairs] for state in (self.both, self.latent, self.feature)]
        scores, recovered = detection(*counts), self.matching.recovered(self.features, self.threshold).double()
        figures = {"mcc": self.matching.mcc, "recovered": recovered.mean()}
        figures |= {name: each.nanmean() for name, each in scores.items()}
        if self.latents < self.features:
            most_frequent = self.probabilities.argsort(descending=True, stable=True)[: self.latents]
            figures["recovered_most_frequent"] = recovered[most_frequent].mean()
        for name, members in decades(self.probabilities).items():
            figures[f"recovered_{name}"] = recovered[members].mean()
            figures[f"f1_{name}"] = scores["f1"][members[pairs]].nanmean()
        return figures
