from collections import Counter

import numpy as np
import pytest

from lightsae.analysis.contexts import token_counts as pairs
from lightsae.analysis.contexts.token_counts import PairCounts

F, V = 5, 40


def skewed(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs in which low partners are frequent; feature 4 has none."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, 4, n), np.minimum(draw.geometric(0.15, n) - 1, V - 1)


def expected_top(counts: Counter[tuple[int, int]], feature: int, k: int) -> list[tuple[int, int]]:
    found = [(partner, n) for (f, partner), n in counts.items() if f == feature]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.mark.parametrize("waiting", [0, 100, 1 << 19])
def test_counts_are_exact_below_the_cap(waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_WAITING", waiting)
    counted, brute = PairCounts(F, V, kept=V), Counter[tuple[int, int]]()
    for seed in range(6):
        features, partners = skewed(300, seed)
        counted.update(features, partners)
        brute.update(zip(features.tolist(), partners.tolist(), strict=True))
    partners, counts = counted.top(7)
    for feature in range(F):
        told = expected_top(brute, feature, 7)
        n = len(told)
        assert list(zip(partners[feature, :n].tolist(), counts[feature, :n].tolist(), strict=True)) == told
        assert (partners[feature, n:] == -1).all()
        assert not counts[feature, n:].any()
    assert (partners[4] == -1).all()


def test_counts_are_lower_bounds_after_the_rarest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_WAITING", 50)
    counted, brute = PairCounts(F, V, kept=6), Counter[tuple[int, int]]()
    for seed in range(40):
        features, partners = skewed(300, seed)
        counted.update(features, partners)
        brute.update(zip(features.tolist(), partners.tolist(), strict=True))
        assert len(counted.keys) <= 2 * F * 6
    assert len(brute) > len(counted.keys)
    partners, counts = counted.top(6)
    for feature in range(4):
        for partner, count in zip(partners[feature].tolist(), counts[feature].tolist(), strict=True):
            assert 0 < count <= brute[feature, partner]
        # The frequent ones never fall among the rarest.
        assert counts[feature, 0] == expected_top(brute, feature, 1)[0][1]


def test_ties_go_to_the_lower_partner() -> None:
    counted = PairCounts(1, 10, kept=10)
    counted.update(np.zeros(5, np.int64), np.array([9, 2, 5, 5, 7]))
    partners, counts = counted.top(3)
    assert partners.tolist() == [[5, 2, 7]]
    assert counts.tolist() == [[2, 1, 1]]


def test_nothing_counted_gives_nothing() -> None:
    partners, counts = PairCounts(3, 10, kept=4).top(2)
    assert (partners == -1).all()
    assert not counts.any()
    empty = PairCounts(3, 10, kept=4)
    empty.update(np.empty(0, np.int64), np.empty(0, np.int64))
    assert (empty.top(2)[0] == -1).all()


def test_keys_beyond_32_bits_are_told_apart() -> None:
    counted = PairCounts(100_000, 50_000, kept=4)
    counted.update(np.array([99_999, 99_999, 0]), np.array([49_999, 49_999, 49_999]))
    partners, counts = counted.top(1)
    assert (partners[99_999, 0], counts[99_999, 0], partners[0, 0], counts[0, 0]) == (49_999, 2, 49_999, 1)
