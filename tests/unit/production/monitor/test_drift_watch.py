"""Drift alarms on simulated texts: none on more of the same, one where a feature triples, one when it is back."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lightsae.production.monitor.drift_watch import DriftWatch, OpenTexts, TextCounts

MEAN = np.array([0.02, 0.002, 0.2, 0.0])
# Of frequencies between texts: from none to wild; the spread is that of a gamma distribution.
SHAPE = np.array([0.5, 1.0, 1e6, 1.0])


def texts(draw: np.random.Generator, n: int, mean: NDArray = MEAN) -> tuple[NDArray, NDArray]:
    sizes = draw.integers(50, 400, n)
    shares = np.minimum(draw.gamma(SHAPE, mean / SHAPE, (n, len(mean))), 1.0)
    return draw.binomial(sizes[:, None], shares), sizes


def watch(draw: np.random.Generator, window: int = 20_000) -> DriftWatch:
    names = [(feature, None) for feature in range(len(MEAN))]
    return DriftWatch(names, TextCounts(*texts(draw, 400)), window, level=0.05, horizon=20)


def test_no_alarm_on_more_of_the_same() -> None:
    """20 windows a run: the level promises 95% quiet runs."""
    loud, runs = 0, 60
    for seed in range(runs):
        draw = np.random.default_rng(seed)
        drift = watch(draw)
        active, sizes = texts(draw, 1800)
        loud += any(drift.add(int(n), k) for n, k in zip(sizes, active, strict=True))
    assert loud <= 0.05 * runs


# Shares of the tokens of each text, (texts, 4): in few texts, and there in bursts.
BURSTS = {
    "in 5% of the texts, on 20% of their tokens": lambda draw, shape: 0.2 * (draw.random(shape) < 0.05),
    "in 2% of the texts, on half of their tokens": lambda draw, shape: 0.5 * (draw.random(shape) < 0.02),
    "in 0.3% of the texts, on 20% of their tokens": lambda draw, shape: 0.2 * (draw.random(shape) < 0.003),
    "in 5% of the texts, sometimes on most tokens": lambda draw, shape: (
        (draw.random(shape) < 0.05) * np.minimum(draw.lognormal(np.log(0.03), 1.2, shape), 1)
    ),
}


@pytest.mark.parametrize("world", BURSTS)
def test_the_level_holds_for_rare_features_that_come_in_bursts(world: str) -> None:
    """20 windows a run, as above. Bands from the mean and variance of the counts gave alarms in up to 9 runs of 10."""
    loud, runs, calibrated_on = 0, 20, 100
    for seed in range(runs):
        draw = np.random.default_rng(seed)
        sizes = draw.integers(50, 400, calibrated_on + 1800)
        active = draw.binomial(sizes[:, None], BURSTS[world](draw, (len(sizes), 4)))
        normal = TextCounts(active[:calibrated_on], sizes[:calibrated_on])
        drift = DriftWatch([(feature, None) for feature in range(4)], normal, 20_000, level=0.05, horizon=20)
        loud += any(drift.add(int(n), k) for n, k in zip(sizes[calibrated_on:], active[calibrated_on:], strict=True))
    # More would happen in fewer than 5% of such tests if the level were 0.05.
    assert loud <= stats.binom.ppf(0.95, runs, 0.05)


def test_no_more_alarms_than_the_level_for_any_text_that_falls_into_the_window() -> None:
    """All ways to choose 4 of 12 texts: the share outside is at most the level, and it is not far below a loose one."""
    active = np.array([0, 0, 0, 0, 0, 0, 1, 2, 3, 9, 30, 40])[:, None]
    sizes = np.full(12, 50)
    for level in (0.05, 0.3, 0.6):
        outside = []
        for chosen in combinations(range(12), 4):
            window = np.isin(np.arange(12), chosen)
            normal = TextCounts(active[~window], sizes[~window])
            ((low, high),) = normal.bands(active[window], sizes[window], [level])
            frequency = active[window].sum() / 200
            outside.append(not low[0] <= frequency <= high[0])
        assert np.mean(outside) <= level
    assert np.mean(outside) > 0.02


def test_tokens_alone_would_have_far_narrower_bands() -> None:
    draw = np.random.default_rng(0)
    active, sizes = texts(draw, 100)
    normal, window = TextCounts(active[:80], sizes[:80]), slice(80, 100)
    ((low, high),) = normal.bands(active[window], sizes[window], [1e-3])
    tokens = [np.arange(n)[:, None] < k for n, k in zip(sizes, active, strict=True)]
    by_token = TextCounts(*((part := np.concatenate(tokens[:80]).astype(np.int64)), np.ones(len(part), np.int64)))
    other = np.concatenate(tokens[window]).astype(np.int64)
    ((low_token, high_token),) = by_token.bands(other, np.ones(len(other), np.int64), [1e-3])
    assert high[0] - low[0] > 3 * (high_token - low_token)[0]
    # A feature whose tokens are independent loses nothing.
    assert high[2] - low[2] == pytest.approx((high_token - low_token)[2], rel=0.3)


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
    numbers = iter(range(100))
    open_ = OpenTexts(
        1, 10, lambda n: min(next(numbers) for _ in range(n)), lambda size, active: done.append((size, int(active[0])))
    )

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
    open_.begin_request()
    add([2, 3], [1, 1])
    open_.end_rows()
    assert add([1], [1]) == 7
    assert done[3:] == [(1, 1)]
    open_.end_request()
    assert done[4:] == [(6, 3)]


def test_bands_are_finite_at_the_extremes() -> None:
    """Never active, always active, and far rarer than the window is long."""
    sizes = np.full(30, 100)
    active = np.stack([np.zeros(30), sizes, np.eye(1, 30)[0]], 1).astype(np.int64)
    found = TextCounts(active, sizes)
    for times in (1, 30):
        window = np.tile(active[:1], (times, 1))
        for levels in ([1e-6], [1e-300, 0.5]):
            bands = found.bands(window, np.full(times, 100), levels)
            assert bands.shape == (len(levels), 2, 3)
            assert np.isfinite(bands).all()
            assert ((bands >= 0) & (bands <= 1)).all()
            assert (bands[:, 0] <= bands[:, 1]).all()
