"""Coherence against all pairs written out, and on planted features: of one token, of one topic, of nothing."""

from itertools import combinations

import numpy as np

from lightsae.analysis.effects.coherence import document_coherence, window_coherence
from lightsae.analysis.reading.firings import BEFORE, NO_TOKEN, WIDTH, Windows


def windows_of(tokens: np.ndarray, documents: np.ndarray, there: np.ndarray) -> Windows:
    zeros = np.zeros(there.shape, np.int64)
    scores = np.where(there, 1, -np.inf).astype(np.float32)
    values = np.zeros(tokens.shape, np.float32)
    return Windows(scores, tokens.astype(np.int32), values, documents, zeros, zeros.astype(np.int32))


def cosines(bags: list[set]) -> np.ndarray:
    """All pairwise cosines of sets of terms, weighted by log(N / df)."""
    weight = {term: np.log(len(bags) / sum(term in bag for bag in bags)) for term in set().union(*bags)}
    norms = [np.sqrt(sum(weight[t] ** 2 for t in bag)) for bag in bags]
    return np.array(
        [[sum(weight[t] ** 2 for t in a & b) / (m * n or 1) for b, n in zip(bags, norms, strict=True)]
         for a, m in zip(bags, norms, strict=True)]
    )  # fmt: skip


def test_values_are_those_of_all_pairs() -> None:
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 30, (6, 5, WIDTH))
    tokens[0, 0, : BEFORE + 1 - 1] = NO_TOKEN
    tokens[1, 2, BEFORE + 1 :] = NO_TOKEN
    tokens[:, :, 3] = 7  # everywhere: weighs nothing
    there = np.ones((6, 5), bool)
    there[3, 2:], there[4, 1:], there[5] = False, False, False
    documents = draw.integers(0, 3, (6, 5))
    documents[2] = 8
    windows = windows_of(tokens, documents, there)

    owner, kept = there.nonzero()[0], tokens[there]
    bags = cosines([{t for t in window if t != NO_TOKEN} for window in kept])
    around = [{(p, w[BEFORE + p]) for p in (-1, 0, 1) if w[BEFORE + p] != NO_TOKEN} for w in kept]
    both = (bags + cosines(around)) / 2
    found, across = window_coherence(windows, 30), document_coherence(windows, 30)
    for feature in range(6):
        pairs = list(combinations(np.flatnonzero(owner == feature), 2))
        expected = np.mean([both[p] for p in pairs]) if pairs else np.nan
        np.testing.assert_allclose(found.values[feature], expected, rtol=1e-5)
        apart = [p for p in pairs if documents[there][p[0]] != documents[there][p[1]]]
        expected = np.mean([bags[p] for p in apart]) if apart else np.nan
        np.testing.assert_allclose(across.values[feature], expected, rtol=1e-5)
    assert np.isnan(found.values[4:]).all()
    assert np.isnan(across.values[2])


def test_planted_features_stand_apart_from_the_null() -> None:
    """0..9 fire on one token each, 10..19 in one topic each (a third of its words), the rest anywhere."""
    draw = np.random.default_rng(1)
    vocabulary, n, k = 2000, 120, 10
    # Words as frequent as in text, most of them rare.
    common = 1 / np.arange(1, vocabulary + 1)
    tokens = draw.choice(vocabulary, (n, k, WIDTH), p=common / common.sum())
    tokens[np.arange(10), :, BEFORE] = 1000 + np.arange(10)[:, None]
    for feature in range(10, 20):
        topical = draw.random((k, WIDTH)) < 1 / 3
        words = draw.integers(1200 + 20 * feature, 1220 + 20 * feature, (k, WIDTH))
        tokens[feature] = np.where(topical, words, tokens[feature])
    windows = windows_of(tokens, np.arange(n * k).reshape(n, k), np.ones((n, k), bool))
    local, across = window_coherence(windows, vocabulary), document_coherence(windows, vocabulary)
    token, topic, nothing = slice(0, 10), slice(10, 20), slice(20, None)
    assert local.values[token].min() > 3 * local.null.max()
    assert local.values[topic].min() > local.null.max()
    assert across.values[topic].min() > 2 * across.null.max()
    assert across.values[topic].min() > across.values[token].max()
    for found in (local, across):
        assert abs(found.values[nothing].mean() - found.null.mean()) < 0.3 * found.null.mean()
        assert found.values[nothing].max() < 2 * found.null.mean()


def test_null_is_drawn_by_its_seed_and_keeps_the_numbers() -> None:
    draw = np.random.default_rng(2)
    there = draw.random((8, 4)) < 0.7
    windows = windows_of(draw.integers(0, 20, (8, 4, WIDTH)), np.arange(32).reshape(8, 4), there)
    first, again, other = (window_coherence(windows, 20, seed=s).null for s in (0, 0, 1))
    assert np.array_equal(first, again, equal_nan=True)
    assert not np.array_equal(first, other, equal_nan=True)
    assert np.array_equal(np.isnan(first), there.sum(1) < 2)


def test_no_windows_at_all() -> None:
    windows = windows_of(np.zeros((3, 2, WIDTH), int), np.zeros((3, 2), np.int64), np.zeros((3, 2), bool))
    assert np.isnan(window_coherence(windows, 5).values).all()
    assert np.isnan(document_coherence(windows, 5).null).all()
