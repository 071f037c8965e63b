"""How alike the features of two SAEs are, and who is whose partner.

Axes:    F features of the first SAE, G of the second, D width, T tokens, k candidates.
Measures: cosine of decoder rows; Pearson correlation of activations over the same tokens, 0 for pairs that never fire
         together; and the mean of both.
Matching: one to one, so that the sum of the measure over the pairs is largest (Hungarian). Up to DENSE features all
         pairs are weighed, and the matching is exact. Above it, it is exact over candidates: the CANDIDATES features of
         G that are the most alike for each of F, and the most alike one of F for each of G. What is not among them has
         weight 0, as a feature without a partner has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from lightsae.analysis.drift.read import SAEOnText
from lightsae.errors import ConfigError
from lightsae.metrics.conventions import NO_PARTNER, assign

DENSE = 4096
CANDIDATES = 32
MEASURES = ("cosine", "correlation", "both")
_ROWS = 512


@dataclass(frozen=True)
class FeatureMatching:
    """How alike, and who with whom.

    Attributes:
        partners: For each measure (F,) the partner in G, or NO_PARTNER.
        matched: For each measure, of the pairs that `both` made, (F,); NaN without a partner.
        own: For each measure, of the pairs that it made itself, (F,); NaN without a partner.
        nearest: For each measure, (F,) the largest value any feature of G reaches.
        nearest_back: The same for (G,), over F.
    """

    partners: dict[str, NDArray[np.int64]]
    matched: dict[str, NDArray[np.float64]]
    own: dict[str, NDArray[np.float64]]
    nearest: dict[str, NDArray[np.float32]]
    nearest_back: dict[str, NDArray[np.float32]]


def match(a: SAEOnText, b: SAEOnText) -> FeatureMatching:
    """Compare all features of two SAEs, and give each of the first its partner in the second.

    Raises:
        ConfigError: Their widths, or the tokens of their activations, are not the same.
    """
    _check(a, b)
    exact = max(len(a), len(b)) <= DENSE
    nearest = {m: np.zeros(len(a), dtype=np.float32) for m in MEASURES}
    nearest_back = {m: np.full(len(b), -np.inf, dtype=np.float32) for m in MEASURES}
    best_back = {m: np.zeros(len(b), dtype=np.int64) for m in MEASURES}
    kept: dict[str, list[Any]] = {m: [] for m in MEASURES}
    for start, block in _blocks(a, b):
        for measure, values in block.items():
            nearest[measure][start : start + len(values)] = values.max(axis=1)
            rows = values.argmax(axis=0)
            top = values[rows, np.arange(len(b))]
            better = top > nearest_back[measure]
            nearest_back[measure][better], best_back[measure][better] = top[better], start + rows[better]
            kept[measure].append(values if exact else _candidates(values))
    partners = {}
    for measure in MEASURES:
        if exact:
            partners[measure] = assign(np.concatenate(kept[measure]))
        else:
            back = (nearest_back[measure], (best_back[measure], np.arange(len(b))))
            graph = sparse.vstack(kept[measure]).maximum(sparse.csr_array(back, shape=(len(a), len(b))))
            partners[measure] = assign(graph.tocsr())
    matched = values_of(a, b, partners["both"])
    own = {measure: values_of(a, b, partners[measure])[measure] for measure in MEASURES}
    return FeatureMatching(partners, matched, own, nearest, nearest_back)


def values_of(a: SAEOnText, b: SAEOnText, partners: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return all measures of given pairs; NaN where there is no partner."""
    there = np.flatnonzero(partners != NO_PARTNER)
    other = partners[there]
    rows_a, rows_b = unit_rows(a.decoder)[there], unit_rows(b.decoder)[other]
    fires_a, fires_b = standardised(a.activations), standardised(b.activations)
    products = np.asarray(fires_a.scaled[:, there].multiply(fires_b.scaled[:, other]).sum(axis=0)).ravel()
    shift = fires_a.means[there] * fires_b.means[other]
    values = {name: np.full(len(partners), np.nan) for name in MEASURES}
    values["cosine"][there] = (rows_a * rows_b).sum(axis=1)
    values["correlation"][there] = np.where(products != 0, products - shift, 0)
    values["both"] = (values["cosine"] + values["correlation"]) / 2
    return values


@dataclass(frozen=True)
class Standardised:
    """Activations divided by their deviation and by sqrt(T): the product of two columns less `means` correlates them.

    Attributes:
        scaled: (T, F) sparse, by columns.
        means: (F,) mean of the activation in deviations.
    """

    scaled: Any
    means: NDArray[np.float64]


def standardised(activations: Any) -> Standardised:
    """Return activations ready for correlations. A column that never changes becomes 0: it correlates with nothing."""
    matrix = sparse.csc_array(activations, dtype=np.float64)
    tokens = matrix.shape[0]
    mean = np.asarray(matrix.sum(axis=0)).ravel() / tokens
    square = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel() / tokens
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    inverse = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12)
    return Standardised((matrix @ sparse.diags_array(inverse / np.sqrt(tokens))).tocsc(), mean * inverse)


def unit_rows(decoder: Float[Tensor, "F D"]) -> NDArray[np.float32]:
    """Return rows of length 1; rows of zeros stay."""
    rows: NDArray[np.float32] = torch.nn.functional.normalize(decoder.detach().float().cpu(), dim=1).numpy()
    return rows


def _blocks(a: SAEOnText, b: SAEOnText) -> Iterator[tuple[int, dict[str, NDArray[np.float32]]]]:
    """Yield, for some features of the first at a time, all measures against all of the second, dense."""
    rows_a, rows_b = unit_rows(a.decoder), unit_rows(b.decoder)
    fires_a, fires_b = standardised(a.activations), standardised(b.activations)
    for start in range(0, len(a), _ROWS):
        some = slice(start, min(start + _ROWS, len(a)))
        cosine = rows_a[some] @ rows_b.T
        product = (fires_a.scaled[:, some].T @ fires_b.scaled).toarray()
        correlation = np.where(product != 0, product - np.outer(fires_a.means[some], fires_b.means), 0)
        correlation = correlation.astype(np.float32)
        both = np.asarray((cosine + correlation) / 2, dtype=np.float32)
        yield start, {"cosine": cosine, "correlation": correlation, "both": both}


def _candidates(values: NDArray[np.float32]) -> Any:
    """Return the largest positive entries of each row, sparse."""
    count = min(CANDIDATES, values.shape[1])
    columns = np.argpartition(-values, count - 1, axis=1)[:, :count].ravel()
    rows = np.repeat(np.arange(len(values)), count)
    return sparse.csr_array((np.maximum(values[rows, columns], 0), (rows, columns)), shape=values.shape)


def _check(a: SAEOnText, b: SAEOnText) -> None:
    if a.decoder.shape[1] != b.decoder.shape[1]:
        raise ConfigError(
            f"The first SAE writes to {a.decoder.shape[1]} dimensions and the second to {b.decoder.shape[1]}; "
            "compare SAEs of the same site."
        )
    for name, one in (("first", a), ("second", b)):
        if one.activations.shape[1] != len(one):
            raise ConfigError(f"The {name} SAE has {len(one)} features, but activations of {one.activations.shape[1]}.")
    tokens = [one.activations.shape[0] for one in (a, b)]
    if tokens[0] != tokens[1] or not tokens[0]:
        raise ConfigError(f"The activations are of {tokens[0]} and {tokens[1]} tokens; give those over the same text.")
