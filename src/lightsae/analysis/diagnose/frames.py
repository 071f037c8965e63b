"""In which units an SAE's tensors could be: scales of activations, norms of decoder rows, thresholds, single tokens.

Axes:    T tokens, D width read, F latents.
Sources: the ways in which libraries normalise, as their readers in `lightsae.formats.layouts` have them.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from lightsae.analysis.diagnose.case import Alternative, Case, Sample, Text, score
from lightsae.formats.layouts import PortableSAE
from lightsae.sae import SiteRef
from lightsae.sae.token_norm import TokenNorm

# Scales nearer to 1 than this are no mistake that anybody would notice.
_NEAR_ONE = 1.1
# Tokens on which scales are searched, powers of two that are tried, and how often the step between them is then halved.
_SEARCH_TOKENS, _FROM, _TO, _HALVINGS = 512, -8, 8, 4
# How near the scale that is found has to be to a known one to be called by its name.
_NEAR_NAME = 1.5


def known_scales(x: Float[Tensor, "T D"]) -> dict[str, float]:
    """Return the factors that libraries multiply activations by: mean norm sqrt(D), mean squared norm 1."""
    norms = x.norm(dim=1)
    mean, square = norms.mean(), norms.square().mean()
    return {
        f"mean norm sqrt({x.shape[1]})": math.sqrt(x.shape[1]) / float(mean),
        "mean squared norm 1": 1 / math.sqrt(float(square)),
    }


def scales(case: Case, sample: Sample) -> Iterator[Alternative]:
    """Give the case with activations multiplied before it, and predictions divided behind it.

    None where each token is normalised by itself: there they have a scale already.
    """
    if case.sae.token_norm is not None:
        return
    x, y = (values[case.ordinary(sample)] for values in case.activations(sample))
    if not case.is_autoencoder:
        yield from _scales_of_two(case, x, y)
        return
    few = {**sample, case.text: _some(sample[case.text], case.read)}
    tried = {2.0**power: _quality(case, 2.0**power, few) for power in range(_FROM, _TO + 1)}
    factor, step = max(tried, key=lambda one: tried[one]), 0.5
    for _ in range(_HALVINGS):
        beside = {one: _quality(case, one, few) for one in (factor * 2**step, factor / 2**step)} | {
            factor: tried[factor]
        }
        tried |= beside
        factor, step = max(beside, key=lambda one: beside[one]), step / 2
    if 1 / _NEAR_ONE < factor < _NEAR_ONE:
        return
    words, mend = _named(factor, known_scales(x)), _fold(factor, case.sae)
    yield Alternative("scale", words, mend, replace(case, sae=case.sae.with_scales(factor, factor)), searched=True)


def _some(text: Text, site: SiteRef) -> Text:
    """Return the first tokens; all of them where there are few."""
    return text.first(min(_SEARCH_TOKENS, len(text.values[site])))


def _quality(case: Case, factor: float, sample: Sample) -> float:
    found = score(replace(case, sae=case.sae.with_scales(factor, factor)), sample)
    return -math.inf if found is None else -found.misfit


def _named(factor: float, known: dict[str, float]) -> str:
    """Say what a factor is: a scale that is missing in the weights, one that is in them twice, or neither."""
    for way, power in (("not in the weights", 1), ("in the weights twice", -1)):
        for name, scale in known.items():
            if abs(math.log(factor / scale**power)) < math.log(_NEAR_NAME):
                return f"the scale of training ({name}) is {way}: factor {factor:.4g}"
    return f"activations were multiplied by {factor:.4g} in training"


def _fold(factor: float, sae: PortableSAE) -> str:
    if sae.pursuit is not None:
        return f"divide b_dec and residual_threshold by {factor:.4g}"
    return f"multiply W_enc by {factor:.4g}, divide W_dec and b_dec by it; thresholds and b_enc stay"


def _scales_of_two(case: Case, x: Tensor, y: Tensor) -> Iterator[Alternative]:
    """Give a transcoder's case with the known scales of both sites, each way and on each side."""
    for (name, read), predicted in zip(known_scales(x).items(), known_scales(y).values(), strict=True):
        for powers in ((1, 1), (-1, -1), (1, 0), (0, 1), (-1, 0), (0, -1)):
            factors = read ** powers[0], predicted ** powers[1]
            if all(1 / _NEAR_ONE < factor < _NEAR_ONE for factor in factors):
                continue
            way = "is not in the weights" if sum(powers) > 0 else "is in the weights twice"
            side = "" if all(powers) else " of what is read" if powers[0] else " of what is predicted"
            yield Alternative(
                "scale",
                f"the scale{side} ({name}) {way}: factors {factors[0]:.4g} and {factors[1]:.4g}",
                f"multiply W_enc by {factors[0]:.4g}, divide W_dec and b_dec by {factors[1]:.4g}",
                replace(case, sae=case.sae.with_scales(*factors)),
                searched=True,
            )


def thresholds(case: Case, sample: Sample) -> Iterator[Alternative]:
    """Give a JumpReLU's case with thresholds in other units, and as logarithms."""
    threshold = case.sae.threshold
    if case.sae.activation != "jumprelu" or threshold is None:
        return
    x = case.activations(sample)[0][case.ordinary(sample)]
    norms = _norms(case.sae)
    factors: dict[str, tuple[float | Tensor, str]] = {}
    for name, scale in known_scales(x).items():
        factors[f"thresholds are for raw activations, the weights for scaled ones ({name})"] = scale, f"{scale:.4g}"
        factors[f"thresholds are for scaled activations ({name}), the weights for raw ones"] = (
            1 / scale,
            f"{1 / scale:.4g}",
        )
    if norms is not None:
        factors["thresholds lack the norms of the decoder's rows"] = norms, "|W_dec|"
        factors["thresholds hold the norms of the decoder's rows"] = 1 / norms, "1 / |W_dec|"
    for words, (factor, shown) in factors.items():
        if isinstance(factor, Tensor) or not 1 / _NEAR_ONE < factor < _NEAR_ONE:
            yield Alternative(
                "threshold", words, f"multiply the thresholds by {shown}", case.with_sae(threshold=threshold * factor)
            )
    logarithms = "thresholds are logarithms: the file's log_threshold was read as threshold"
    yield Alternative(
        "threshold",
        logarithms,
        "take the exponential of the thresholds",
        case.with_sae(threshold=threshold.exp()),
        # Below 0 a threshold lets through what is not positive, and is none.
        likely=float(threshold.median()) < 0,
    )
    if bool((threshold > 0).all()):
        yield Alternative(
            "threshold",
            "thresholds are exponentials: the file's threshold was read as log_threshold",
            "take the logarithm of the thresholds",
            case.with_sae(threshold=threshold.log()),
        )


def decoder_norms(case: Case, sample: Sample) -> Iterator[Alternative]:
    """Give the case with latents, or the choice among them, in units of the decoder rows' norms."""
    norms = _norms(case.sae)
    # In a matching pursuit there are no two sides.
    if norms is None or case.sae.pursuit is not None:
        return
    W_dec = case.sae.W_dec
    for words, mend, factor in (
        (
            "the norms of the decoder's rows are in the encoder already",
            "divide each row of W_dec by its norm",
            1 / norms,
        ),
        ("the decoder's rows hold their norms twice", "divide each row of W_dec by the root of its norm", norms**-0.5),
        ("the decoder's rows lack their norms", "multiply each row of W_dec by its norm", norms),
    ):
        yield Alternative("decoder_norms", words, mend, case.with_sae(W_dec=W_dec * factor[:, None]))
    if case.sae.activation in ("topk", "groupmax"):
        for words, factor in (("times", norms), ("divided by", 1 / norms)):
            yield Alternative(
                "decoder_norms",
                f"latents are chosen by z {words} the norm of the decoder's row",
                f"let W_enc and b_enc be {words} the norms, and W_dec the other way round",
                replace(case, sae=case.sae.with_latents_times(factor, "")),
            )


def _norms(sae: PortableSAE) -> Float[Tensor, " F"] | None:
    """Return the norms of the decoder's rows; None where they are all 1, and nothing hangs on them."""
    norms: Tensor = sae.W_dec.norm(dim=1)
    if bool((norms.log().abs() < math.log(1.01)).all()) or not bool((norms > 0).all()):
        return None
    return norms


def token_norms(case: Case, sample: Sample) -> Iterator[Alternative]:
    """Give an autoencoder's case with each token normalised by itself in another way."""
    if not case.is_autoencoder or case.sae.W_skip is not None or case.sae.W_enc.shape[0] < 2:
        return
    words: dict[TokenNorm | None, str] = {
        "layer_norm": "each token had mean 0 and standard deviation 1 in training (layer_norm)",
        "rescale": "each token had the norm sqrt(D) in training (rescale)",
        None: "no token was normalised by itself in training",
    }
    for norm, said in words.items():
        if norm != case.sae.token_norm:
            mend = "leave the normalisation of tokens out" if norm is None else f"set token_norm to {norm}"
            yield Alternative("token_norm", said, f"{mend} where the file is read", case.with_sae(token_norm=norm))
