"""Drift alarms on simulated texts: none on more of the same, one where a feature triples, one when it is back."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lightsae.production.monitor.drift_watch import DriftWatch, Frequencies, OpenTexts

MEAN = np.array([0.02, 0.002, 0.2, 0.0])
# Of frequencies between texts: from none to wild; the spread is that of a gamma distribution.
SHAPE = np.array([0.5, 1.0, 1e6, 1.0])


def texts(draw: np.random.Generator, n: int, mean: NDArray = MEAN) -> tuple[NDArray, NDArray]:
    sizes = draw.integers(50, 400, n)
    shares = np.minimum(draw.gamma(SHAPE, mean / SHAPE, (n, len(mean))), 1.0)
    return draw.binomial(sizes[:, None], shares), sizes


def watch(draw: np.random.Generator, window: int = 20_000) -> DriftWatch:
    names = [(feature, None) for feature in range(len(MEAN))]
    return DriftWatch(names, Frequencies.measure(*texts(draw, 400)), window, level=0.05, horizon=20)


def test_estimates() -> None:
    found = Frequencies.measure(*texts(np.random.default_rng(0), 20_000))
    assert found.mean == pytest.approx(MEAN, rel=0.1, abs=1e-6)
    # The variance of the shares over p (1 - p).
    expected = (MEAN / SHAPE / (1 - MEAN))[:3]
    assert found.alike[:3] == pytest.approx(expected, rel=0.2, abs=1e-4)
    assert found.longest == 399


def test_no_alarm_on_more_of_the_same() -> None:
    """20 windows a run: the level promises 95% quiet runs."""
    loud, runs = 0, 60
    for seed in range(runs):
        draw = np.random.default_rng(seed)
        drift = watch(draw)
        active, sizes = texts(draw, 1800)
        loud += any(drift.add(int(n), k) for n, k in zip(sizes, active, strict=True))
    assert loud <= 0.05 * runs


def test_without_the_likeness_of_texts_there_would_be_alarms() -> None:
    """The test above can fail: bands of independent tokens are far too narrow."""
    loud = 0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        drift = watch(draw)
        object.__setattr__(drift.expected, "alike", np.zeros(4))
        active, sizes = texts(draw, 1800)
        loud += any(drift.add(int(n), k) for n, k in zip(sizes, active, strict=True))
    assert loud > 10


def test_alarm_when_it_triples_and_once_when_it_is_back() -> None:
    tripled = MEAN * np.array([3.0, 1.0, 1.0, 1.0])
    for seed in range(10):
        draw = np.random.default_rng(seed)
        drift = watch(draw, window=40_000)
        told = []
        for mean, n in ((MEAN, 300), (tripled, 600), (MEAN, 900)):
            told.append([c for t, k in zip(*texts(draw, n, mean)[::-1], strict=True) for c in drift.add(int(t), k)])
        assert not told[0]
        assert [(c.feature, c.state, c.side) for c in told[1]] == [(0, "left", "above")]
        assert told[1][0].frequency > told[1][0].high > MEAN[0]
        assert 40_000 <= told[1][0].tokens < 40_400
        assert [(c.feature, c.state, c.side) for c in told[2]] == [(0, "returned", "above")]


def test_alarm_when_it_is_gone_and_when_a_silent_one_fires() -> None:
    draw = np.random.default_rng(1)
    drift = watch(draw)
    changed = np.array([0.02, 0.002, 0.0, 0.01])
    told = [c for t, k in zip(*texts(draw, 300, changed)[::-1], strict=True) for c in drift.add(int(t), k)]
    assert {(c.feature, c.side) for c in told} == {(2, "below"), (3, "above")}
    assert len(told) == 2


def test_texts_are_rows_or_requests_and_long_ones_are_cut() -> None:
    done: list[tuple[int, int]] = []
    open_ = OpenTexts(1, 10, lambda size, active: done.append((size, int(active[0]))))

    def add(sizes: list[int], active: list[int]) -> int:
        first = open_.first_of(len(sizes))
        open_.add(np.array(sizes), np.array(active)[:, None])
        return first

    assert add([4, 3], [1, 0]) == 0
    assert add([4, 3], [1, 2]) == 0
    assert not done
    open_.end_rows()
    assert done == [(8, 2), (6, 2)]
    assert add([12, 1, 0], [5, 1, 0]) == 2
    assert done[2:] == [(12, 5)]
    open_.end_rows()
    with open_.request():
        add([2, 3], [1, 1])
        open_.end_rows()
        assert add([1], [1]) == 7
        assert done[3:] == [(1, 1)]
    assert done[4:] == [(6, 3)]


def test_bands_are_finite_at_the_extremes() -> None:
    """Never active, always active, and far rarer than the window is long."""
    sizes = np.full(30, 100)
    active = np.stack([np.zeros(30), sizes, np.eye(1, 30)[0]], 1).astype(np.int64)
    found = Frequencies.measure(active, sizes)
    for texts_in_window in (np.array([5.0]), np.full(1000, 100.0)):
        low, high = found.band(texts_in_window, 1e-6)
        assert np.isfinite([low, high]).all()
        assert (low <= found.mean).all()
        assert (found.mean <= high).all()
