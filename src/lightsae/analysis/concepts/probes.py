"""Probes: how well a few latents tell a concept, beside as many neurons, a random SAE, and the whole activation.

Axes:    n tokens of a sample, P columns of what is probed (latents, neurons, coordinates), k of them.
Method:  k-sparse probing as sae-probes has it (Kantamneni et al. 2025, arXiv:2502.16681): columns are divided by their
         mean where they are not 0; the k with the largest absolute difference of the classes' means get a logistic
         regression with L1, its strength chosen among ten by AUC on a fifth of the training tokens. Training tokens
         are balanced, and the tokens of the tests are of other documents.
         Here the regression is fitted by liblinear, to its optimum; there by SAGA, up to 1,000 steps.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from packaging.version import Version
from scipy import sparse

from lightsae.analysis.concepts.figures import KS, Values
from lightsae.analysis.concepts.task import Task
from lightsae.analysis.concepts.truth import Bools, Indices, Ints

# Tokens of each class, in training and in the tests.
TRAINING, TESTS = 512, 512
_STRENGTHS = np.logspace(5, -5, 10)
_VALIDATION = 0.2
# (n, P): an array, or compressed rows; mypy knows no types of scipy's.
Columns: TypeAlias = Any


@dataclass(frozen=True)
class Sample:
    """The tokens of one concept's probe.

    Attributes:
        concept: Its place among those that are scored.
        training, tests: Tokens, as places in the list of all that are read.
        is_training, is_test: Whether the concept holds at each.
    """

    concept: int
    training: Ints
    tests: Ints
    is_training: Bools
    is_test: Bools


@dataclass(frozen=True)
class Samples:
    """The tokens of all probes.

    Attributes:
        tokens: (n,) the tokens that are read, ascending, as flat indices of the text.
        each: One sample a concept.
    """

    tokens: Ints
    each: list[Sample]


@dataclass(frozen=True)
class Probe:
    """One regression.

    Attributes:
        columns: What it sees: the k columns; empty if it sees all.
        auc, accuracy: For every draw of the documents of the tests; accuracy is the mean of both classes'.
    """

    columns: list[int]
    auc: Values
    accuracy: Values


def draw_samples(task: Task, concepts: int, readable: Bools, seed: int) -> Samples:
    """Choose concepts, evenly over their names, and balanced tokens of each.

    Args:
        task: The concepts.
        concepts: How many; all if there are fewer.
        readable: (T,) tokens that may be taken.
        seed: Of the draws.
    """
    halves = [task.choosing & readable, task.testing & readable]
    chosen = np.unique(np.linspace(0, len(task.names) - 1, min(concepts, len(task.names))).round().astype(np.int64))
    drawn = []
    for concept in chosen.tolist():
        parts = []
        for number, (half, most) in enumerate(zip(halves, (TRAINING, TESTS), strict=True)):
            rng = np.random.default_rng([seed, concept, number])
            positives = _some(task.tokens_of(concept, half), most, rng)
            holds = np.zeros(len(half), np.bool_)
            holds[task.tokens_of(concept, half)] = True
            negatives = _some(np.flatnonzero(half & ~holds), len(positives), rng)
            parts.append((positives, negatives))
        # A class of fewer tokens tells nothing.
        if min(len(one) for part in parts for one in part) >= 10:
            drawn.append((concept, parts))
    everything = [one for _, parts in drawn for part in parts for one in part]
    tokens = np.unique(np.concatenate([np.empty(0, np.int64), *everything]))
    each = []
    for concept, parts in drawn:
        places = [np.searchsorted(tokens, np.concatenate(part)) for part in parts]
        truths = [np.repeat([True, False], [len(positives), len(negatives)]) for positives, negatives in parts]
        each.append(Sample(concept, places[0], places[1], truths[0], truths[1]))
    return Samples(tokens, each)


def _some(tokens: Indices, most: int, rng: np.random.Generator) -> Ints:
    return np.asarray(rng.permutation(tokens)[:most], np.int64)


def sparse_probes(
    sample: Sample, columns: Columns, documents: Ints, times: NDArray[np.float64], ks: Sequence[int] = KS
) -> dict[int, Probe]:
    """Fit a probe for each k.

    Args:
        sample: The tokens.
        columns: (n, P) what is probed, at all tokens that are read.
        documents: (n,) place of each token's document among those of the tests; meaningless for training tokens.
        times: (B, N) how often each document of the tests is in each draw.
        ks: Numbers of columns.
    """
    training, tests = (_scaled(columns[places], columns[sample.training]) for places in (sample.training, sample.tests))
    difference = np.abs(_mean(training[sample.is_training]) - _mean(training[~sample.is_training]))
    order = np.argsort(-difference, kind="stable")
    found = {}
    for k in ks:
        some = order[: min(k, len(order))]
        model = _fit(_dense(training[:, some]), sample.is_training, sparse_weights=True)
        scores = model.decision_function(_dense(tests[:, some]))
        found[k] = _probe(some.tolist(), scores, sample.is_test, documents[sample.tests], times)
    return found


def full_probe(sample: Sample, columns: Columns, documents: Ints, times: NDArray[np.float64]) -> Probe:
    """Fit a probe with L2 that sees everything, each column at its standard deviation in training."""
    training, tests = (_dense(columns[places]) for places in (sample.training, sample.tests))
    mean, spread = training.mean(0), np.maximum(training.std(0), 1e-9)
    model = _fit((training - mean) / spread, sample.is_training, sparse_weights=False)
    scores = model.decision_function((tests - mean) / spread)
    return _probe([], scores, sample.is_test, documents[sample.tests], times)


def _scaled(columns: Columns, training: Columns) -> Columns:
    """Divide columns by their mean over those training tokens where they are not 0."""
    sums = np.asarray(abs(training).sum(0)).ravel()
    counts = np.asarray((training != 0).sum(0)).ravel()
    factor = np.where(sums > 0, counts / np.maximum(sums, 1e-12), 0).astype(np.float32)
    if isinstance(columns, np.ndarray):
        return np.asarray(columns * factor)
    return sparse.csr_array(columns @ sparse.diags_array(factor))


def _mean(columns: Columns) -> NDArray[np.float64]:
    return np.asarray(columns.mean(0), np.float64).ravel()


def _dense(columns: Columns) -> NDArray[np.float64]:
    return np.asarray(columns if isinstance(columns, np.ndarray) else columns.toarray(), np.float64)


def _fit(columns: NDArray[np.float64], truth: Bools, *, sparse_weights: bool) -> Any:
    """Return a logistic regression, of the strength that does best on a part of the tokens."""
    order = np.random.default_rng(0).permutation(len(truth))
    kept = len(truth) - int(_VALIDATION * len(truth))
    learned, held_out = order[:kept], order[kept:]
    if len(np.unique(truth[held_out])) < 2 or len(np.unique(truth[learned])) < 2:
        return _regression(1.0, sparse_weights, columns, truth)
    aucs = []
    for strength in _STRENGTHS:
        model = _regression(strength, sparse_weights, columns[learned], truth[learned])
        aucs.append(auc(model.decision_function(columns[held_out]), truth[held_out]))
    return _regression(_STRENGTHS[int(np.argmax(aucs))], sparse_weights, columns, truth)


def _regression(strength: float, sparse_weights: bool, columns: NDArray[np.float64], truth: Bools) -> Any:
    # Importing it takes a second, and most evaluations do not probe.
    import sklearn
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    how: dict[str, Any] = {}
    if sparse_weights:
        # The penalty's name before scikit-learn 1.8.
        is_old = Version(sklearn.__version__) < Version("1.8")
        how = {"solver": "liblinear", "random_state": 0} | ({"penalty": "l1"} if is_old else {"l1_ratio": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=1000, **how).fit(columns, truth)


def auc(scores: NDArray[np.float64], truth: Bools) -> float:
    """Return the chance that a token of the concept has the larger score than another one; equal ones count half.

    >>> auc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    0.875
    """
    one = np.zeros(len(truth), np.int64)
    return float(_aucs(scores, truth, one, np.ones((1, 1)))[0])


def _aucs(scores: NDArray[np.float64], truth: Bools, documents: Ints, times: NDArray[np.float64]) -> Values:
    """Return AUC for every draw of documents: pairs of documents are counted once, and weighted by each draw."""
    count = times.shape[1]
    others = scores[~truth]
    order = np.argsort(others, kind="stable")
    below = np.zeros((len(others) + 1, count))
    below[1:] = np.eye(count)[documents[~truth][order]].cumsum(0)
    ordered = others[order]
    won = (
        below[np.searchsorted(ordered, scores[truth], "left")] + below[np.searchsorted(ordered, scores[truth], "right")]
    ) / 2
    pairs = np.zeros((count, count))
    np.add.at(pairs, documents[truth], won)
    positives = np.bincount(documents[truth], minlength=count).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Values = ((times @ pairs) * times).sum(1) / ((times @ positives) * (times @ below[-1]))
    return found


def _probe(
    columns: list[int], scores: NDArray[np.float64], truth: Bools, documents: Ints, times: NDArray[np.float64]
) -> Probe:
    right = (scores > 0) == truth
    shares = []
    for of_class in (truth, ~truth):
        tokens = np.bincount(documents[of_class], minlength=times.shape[1])
        hits = np.bincount(documents[of_class & right], minlength=times.shape[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            shares.append((times @ hits) / (times @ tokens))
    return Probe(columns, _aucs(scores, truth, documents, times), (shares[0] + shares[1]) / 2)


def probe_figures(probes: Sequence[Mapping[int, Probe]]) -> dict[str, Values]:
    """Return the means over concepts for every draw, by k; 0 stands for all columns."""
    figures = {}
    for k in probes[0] if probes else ():
        name = f"k{k}" if k else "full"
        for what in ("auc", "accuracy"):
            values = np.stack([getattr(one[k], what) for one in probes])
            there = np.isfinite(values)
            figures[f"probe_{what}_{name}"] = np.where(there, values, 0).sum(0) / np.maximum(there.sum(0), 1)
    return figures
