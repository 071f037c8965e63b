"""One way in which an SAE could have been meant, and how well it explains the sample.

Axes:    T tokens, D width read, O width predicted, F latents.
Units:   raw activations.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightsae.analysis.diagnose.gradient import DecoderGradient
from lightsae.errors import FormatError
from lightsae.formats.layouts import PortableSAE
from lightsae.metrics.reconstruction import ReconstructionSums, merge, reconstruction_sums
from lightsae.sae import SiteRef
from lightsae.sae.sparse_ops import as_sparse

# Tokens whose latents are in memory at once.
_TOKENS = 1024
# Beyond this a token's error says nothing more: it is off.
_MOST_ERROR = 2.0
# Of 16 SAEs after 200 steps on the built-in model the own site had the least misfit in all, the least error in 14.
_WEIGHT_OF_BIAS = 5.0
_WEIGHT_OF_GRADIENT = 20.0
# Twice the latents per token that the file says count as much as so much error; other text than the publisher's
# changes them by less than the factor that is free.
_WEIGHT_OF_L0, _FREE = 0.15, math.log(1.25)
# An SAE of which nothing fires is as far off as one with so many times the latents.
_MOST_APART = math.log(20.0)
# Names of texts in a sample.
SAID, OTHER_BOS, OTHER_MODEL = "as said", "other BOS", "other model"


@dataclass(frozen=True)
class Text:
    """Activations of some rows.

    Attributes:
        values: (T, width) by site, raw.
        sinks: Which tokens are attention sinks, by site.
        seen: Which tokens the SAE's file says the training saw.
    """

    values: Mapping[SiteRef, Float[Tensor, "T _"]]
    sinks: Mapping[SiteRef, Bool[Tensor, " T"]]
    seen: Bool[Tensor, " T"]

    def first(self, tokens: int) -> "Text":
        """Return the first tokens alone."""
        values, sinks = ({site: value[:tokens] for site, value in of.items()} for of in (self.values, self.sinks))
        return Text(values, sinks, self.seen[:tokens])


Sample = Mapping[str, Text]


@dataclass(frozen=True)
class Case:
    """An SAE with what it reads and predicts.

    Attributes:
        sae: What is computed.
        read: Where.
        predicted: What it is held against.
        text: Which rows of the sample.
        l0: Latents per token, as the file says; None: it does not, or the SAE always has as many.
    """

    sae: PortableSAE
    read: SiteRef
    predicted: SiteRef
    text: str = SAID
    l0: float | None = None

    @classmethod
    def of(cls, sae: PortableSAE, read: SiteRef, predicted: SiteRef) -> "Case":
        """Return the SAE as its file has it."""
        # Of TopK k is how latents are chosen, and may be the mistake; of a threshold it is what the training aimed at.
        aimed_at = float(sae.k) if sae.k is not None and sae.activation == "jumprelu" else None
        return cls(sae, read, predicted, l0=dict(sae.source.published).get("l0", aimed_at))

    @property
    def is_autoencoder(self) -> bool:
        """Whether it predicts what it reads."""
        return self.read == self.predicted

    def with_sae(self, **changes: Any) -> "Case":
        """Return the case with an SAE of which some parts are others."""
        return replace(self, sae=replace(self.sae, **changes))

    def activations(self, sample: Sample) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T O"]]:
        """Return what is read and what is predicted, on all tokens."""
        values = sample[self.text].values
        return values[self.read], values[self.predicted]

    def ordinary(self, sample: Sample) -> Bool[Tensor, " T"]:
        """Return which tokens are no attention sinks at its sites."""
        sinks = sample[self.text].sinks
        return ~(sinks[self.read] | sinks[self.predicted])


@dataclass(frozen=True)
class Score:
    """How a case explains the sample.

    Attributes:
        fve: Over the tokens that the training saw, as the file says.
        fve_no_sinks: Over those that are no attention sinks.
        fve_of_sinks: Over the sinks among those seen, held against the mean of the others; NaN: there are none.
        l0: Latents that fire on a token that is no sink.
        dead: Share of the latents that fire on none of them.
        error: Mean over them of |x - x_hat|^2 / |x - mean|^2; a token counts 2 at most. It hardly depends on how long
            activations are, which another site or a norm changes.
        bias: |mean of x - x_hat|^2 as a share of the variance. A trained b_dec leaves hardly any in its own place,
            while neighbouring layers differ in their means more than in all else.
        gradient: Share of the variance that a factor for each latent would still explain; see `DecoderGradient`.
        l0_apart: |log(l0 / what the file says)|; 0: it says nothing.
    """

    fve: float
    fve_no_sinks: float
    fve_of_sinks: float
    l0: float
    dead: float
    error: float
    bias: float
    gradient: float = 0.0
    l0_apart: float = 0.0

    @property
    def misfit(self) -> float:
        """By this one hypotheses are compared."""
        unlearned = _WEIGHT_OF_BIAS * self.bias + _WEIGHT_OF_GRADIENT * self.gradient
        return self.error + unlearned + _WEIGHT_OF_L0 * max(0.0, self.l0_apart - _FREE)


@torch.no_grad()
def score(case: Case, sample: Sample) -> Score | None:
    """Run a case over the sample; None where its parts make no SAE, or its figures are no numbers."""
    try:
        sae = case.sae.to_sae()
    except FormatError:
        return None
    x, y = case.activations(sample)
    sae = sae.to(x.device)
    ordinary, seen = case.ordinary(sample), sample[case.text].seen
    groups = torch.stack([ordinary, seen, seen & ~ordinary])
    parts: list[ReconstructionSums] = []
    mean = y[ordinary].mean(0)
    relative: list[Tensor] = []
    off = torch.zeros_like(mean, dtype=torch.float64)
    fires = torch.zeros(sae.d_sae, dtype=torch.bool, device=x.device)
    gradient = DecoderGradient(sae)
    for start in range(0, len(x), _TOKENS):
        part = slice(start, start + _TOKENS)
        output = sae(x[part])
        latents = as_sparse(output.latents)
        fired = latents.values > 0
        tokens = latents.pattern.token_of[fired]
        counts = torch.bincount(tokens, minlength=len(x[part]))
        fires[latents.indices[fired][ordinary[part][tokens]]] = True
        parts.append(reconstruction_sums(y[part], output.x_hat, counts, groups[:, part]))
        error = y[part] - output.x_hat
        off += error[ordinary[part]].sum(0, dtype=torch.float64)
        gradient.add(x[part], latents, error, ordinary[part])
        spread = (y[part] - mean).square().sum(1).clamp_min(torch.finfo(y.dtype).tiny)
        relative.append((error.square().sum(1) / spread).clamp_max(_MOST_ERROR))
    sums = merge(ReconstructionSums(*(torch.stack(values) for values in zip(*parts, strict=True))))
    # A sink is one vector again and again: around their own mean there is hardly anything to explain.
    apart = sums.spread[2] + sums.tokens[2] * (sums.mean[2] - sums.mean[0]).square().sum()
    of_sinks = 1 - sums.error[2] / apart
    fve = sums.fve
    if not bool(fve[0].isfinite()):
        return None
    l0 = float(sums.l0[0])
    return Score(
        fve=float(fve[1]),
        fve_no_sinks=float(fve[0]),
        fve_of_sinks=float(of_sinks),
        l0=l0,
        dead=float(1 - fires.double().mean()),
        error=float(torch.cat(relative)[ordinary].double().mean()),
        bias=float((off / sums.tokens[0]).square().sum() / (sums.spread[0] / sums.tokens[0])),
        gradient=gradient.share_of(float(sums.spread[0])),
        l0_apart=0.0 if case.l0 is None else min(_MOST_APART, abs(math.log(max(l0, 1e-9) / case.l0))),
    )


CAUSES: Mapping[str, str] = {
    "site": "it is of another layer or another place of the layer",
    "norm": "it is of the other side of a norm",
    "gain": "it is of a norm's output without its gain, or with it",
    "scale": "activations were scaled in training, and the scale is not in the weights, or is in them twice",
    "b_dec": "b_dec is subtracted from the input where it was not in training, or the other way round",
    "transposed": "a matrix was read in the other order of its axes",
    "threshold": "thresholds are in another unit than the pre-activations, or are logarithms",
    "token_norm": "each token was normalised by itself in training, or was not",
    "activation": "the latents are chosen in another way",
    "decoder_norms": "latents are in units of their decoder rows' norms on one side alone",
    "bos": "rows began in another way in training, or their first tokens were left out",
    "model": "it is of the other model",
}


@dataclass(frozen=True)
class Alternative:
    """One hypothesis.

    Attributes:
        cause: One of `CAUSES`.
        what: What is supposed, in words: "it reads resid_post.1".
        mend: What to do if it is so.
        case: What is then computed.
        searched: Whether its number is searched for, so that some improvement has to be expected of it.
        likely: Whether what the file says can hardly be meant, and would be explained by this: thresholds below 0.
    """

    cause: str
    what: str
    mend: str
    case: Case
    searched: bool = False
    likely: bool = False


# Gives the alternatives of one cause. The sample is what scales are measured on.
Cause = Callable[[Case, Sample], Iterator[Alternative]]
