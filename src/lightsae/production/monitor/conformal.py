"""Thresholds with a false-positive rate, from documents: quantile, and what correlated tokens are worth.

Axes:    T tokens, of documents 0..m-1.
Source:  conformal quantile: Vovk et al. 2005, ch. 2; where documents are exchangeable, not tokens, conformal risk
         control: Angelopoulos et al. 2022, arXiv:2208.02814, thm. 1. Design effect: Kish 1965, ch. 5.

Tokens of a document are alike, so that n of them tell less than n independent ones: as many as n / deff, where the
design effect deff is the variance of the rate between documents over what independent tokens would have. The threshold
is the smallest with (e * share + 1) / (e + 1) <= rate, where e = n / deff and share is that of the calibration tokens
above it. With deff 1 this is the conformal quantile, with deff a document's length it is conformal risk control; in
between it is an approximation, and the rate is therefore tested on other documents.
"""

import numpy as np
from numpy.typing import NDArray

from lightsae.metrics.intervals import share_of

Values = NDArray[np.float32]
Documents = NDArray[np.int64]


def threshold_for(values: Values, documents: Documents, rate: float) -> tuple[float, float]:
    """Return the threshold that a share of at most `rate` of tokens exceeds, in documents like these.

    Args:
        values: (T,) activations where the feature should not fire.
        documents: (T,) of which document each token is.
        rate: Asked.

    Returns:
        The threshold, never below 0, and the effective number of tokens; infinity where these are fewer than 1 / rate,
        and no threshold can be vouched for.
    """
    ordered = np.sort(values)
    threshold, effective = _quantile(ordered, float(len(ordered)), rate), float(len(ordered))
    if np.isfinite(threshold):
        # How alike the tokens of a document are has to be seen at the threshold itself, where few exceed it.
        effective = share_of(values > threshold, documents).effective
        threshold = _quantile(ordered, effective, rate)
    return threshold, effective


def _quantile(ordered: Values, effective: float, rate: float) -> float:
    """Return the smallest of the values, or 0, that is exceeded on at most ((e + 1) * rate - 1) / e of them."""
    n = len(ordered)
    # In floating point the product of a number and its inverse may lie just below 1.
    if effective * rate < 1 - 1e-9:
        return float("inf")
    above = min(n - 1, int(((effective + 1) * rate - 1) / effective * n + 1e-9))
    return max(0.0, float(ordered[n - 1 - above]))
