"""Thresholds with a false-positive rate, from documents: quantile, and what correlated tokens are worth.

Axes:    T tokens, of documents 0..m-1.
Source:  conformal quantile: Vovk et al. 2005, ch. 2; where documents are exchangeable, not tokens, conformal risk
         control: Angelopoulos et al. 2022, arXiv:2208.02814, thm. 1. With a confidence: Vovk 2012, prop. 2a.

Tokens of a document are alike, so that n of them tell less than n independent ones: as many as n / deff, where the
design effect deff is the variance of the rate between documents over what independent tokens would have. The threshold
is the smallest with (e * share + 1) / (e + 1) <= rate, where e = n / deff and share is that of the calibration tokens
above it. With deff 1 this is the conformal quantile, with deff a document's length it is conformal risk control; in
between it is an approximation, and the rate is therefore tested on other documents.

That threshold holds the rate on average over calibrations: some texts give one that is too low, others one that is too
high. With a confidence, the share of the calibration tokens that may exceed the threshold is less: k / e, where
P(Binomial(e, rate) <= k) is what is left to chance.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from lightsae.metrics.intervals import share_of

Values = NDArray[np.float32]
Documents = NDArray[np.int64]


def threshold_for(
    values: Values, documents: Documents, rate: float, confidence: float | None = None
) -> tuple[float, float]:
    """Return the threshold that a share of at most `rate` of tokens exceeds, in documents like these.

    Args:
        values: (T,) activations where the feature should not fire.
        documents: (T,) of which document each token is.
        rate: Asked.
        confidence: Share of the calibrations that are to keep the rate; None: it holds on average over calibrations.

    Returns:
        The threshold, never below 0, and the effective number of tokens; infinity where these are fewer than
        `least_effective`, and no threshold can be vouched for.
    """
    ordered = np.sort(values)
    threshold, effective = _quantile(ordered, float(len(ordered)), rate), float(len(ordered))
    if np.isfinite(threshold):
        # How alike the tokens of a document are has to be seen at the threshold itself, where few exceed it.
        share = share_of(values > threshold, documents)
        effective = float(share.effective if confidence is None else share.trusted_at(confidence))
        threshold = _quantile(ordered, effective, rate, confidence)
    return threshold, effective


def least_effective(rate: float, confidence: float | None = None) -> float:
    """Return how many independent tokens a threshold takes that none of them exceeds."""
    return 1 / rate if confidence is None else math.log1p(-confidence) / math.log1p(-rate)


def _quantile(ordered: Values, effective: float, rate: float, confidence: float | None = None) -> float:
    """Return the smallest of the values, or 0, that no more of them exceed than may."""
    n = len(ordered)
    # In floating point the product of a number and its inverse may lie just below 1.
    if effective < least_effective(rate, confidence) * (1 - 1e-9):
        return float("inf")
    if confidence is None:
        times = (effective + 1) * rate - 1
    else:
        # P(Binomial(e, rate) <= k) = 1 - betainc(k + 1, e - k, rate), for any k and e.
        times = optimize.brentq(lambda k: special.betainc(k + 1, effective - k, rate) - confidence, 0, effective * rate)
    above = min(n - 1, int(times / effective * n + 1e-9))
    return max(0.0, float(ordered[n - 1 - above]))
