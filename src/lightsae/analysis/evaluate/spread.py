"""By how much a figure moves with the text: kept draw by draw, so that SAEs read on one text can be subtracted.

Axes:    N documents, B draws (the first is the text itself), K deviations, F latents.
Sources: Efron & Tibshirani 1993, ch. 8 and 11: bootstrap and jackknife over clusters. Efron & Stein 1981, Annals of
         Statistics 9: of any statistic of independent draws the jackknife's variance errs on the large side.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lightsae.analysis.evaluate.document_sums import FEWEST


@dataclass(frozen=True)
class Spread:
    """How one figure of one SAE varies with the text.

    Attributes:
        deviations: (K,) their squares add up to the variance. Of two SAEs on the same text the differences' do.
        documents: Effective number of documents: (sum of sizes)^2 / sum of squared sizes.
    """

    deviations: NDArray[np.float64]
    documents: float


def spreads(values: Mapping[str, NDArray[np.float64]], sizes: NDArray[np.float64]) -> dict[str, Spread]:
    """Return the spread of each figure over draws of documents; none where they are too few or a draw has no figure.

    Args:
        values: (1 + B,) by name, as `document_sums.draws` makes them: the same draws for every SAE of the text.
        sizes: (N,) tokens of the documents.
    """
    documents = effective(sizes)
    if len(sizes) < FEWEST:
        return {}
    # A draw has n documents of n, and so varies by (n - 1) / n of what a sample does.
    scale = np.sqrt(documents / (documents - 1))
    found = {}
    for name, of_draws in values.items():
        drawn = of_draws[1:]
        if np.isfinite(drawn).all():
            found[name] = Spread(scale * (drawn - drawn.mean()) / np.sqrt(len(drawn) - 1), documents)
    return found


def dead_spread(fires: sparse.csr_array, sizes: NDArray[np.float64]) -> Spread | None:
    """Return the spread of the share of dead latents, by leaving out a document at a time; None of too few.

    Draws with replacement leave out a third of the documents and so find more dead latents. Without a document, those
    are dead too that fire in it alone.

    Args:
        fires: (N, F) on how many tokens of each document each latent fires.
        sizes: (N,) tokens of the documents.
    """
    documents = len(sizes)
    if documents < FEWEST:
        return None
    alone = np.asarray((fires > 0).sum(0)).ravel() == 1
    only_here = np.asarray((fires[:, alone] > 0).sum(1)).ravel() / fires.shape[1]
    deviations = np.sqrt((documents - 1) / documents) * (only_here - only_here.mean())
    return Spread(deviations, effective(sizes))


def effective(sizes: NDArray[np.float64]) -> float:
    """Return how many documents of equal size would tell as much (Kish).

    >>> effective(np.array([100.0, 100.0, 100.0])), effective(np.array([300.0, 1.0, 1.0])) < 1.02
    (3.0, True)
    """
    return float(sizes.sum() ** 2 / max((sizes**2).sum(), 1e-300))
