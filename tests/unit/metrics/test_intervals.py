"""Intervals against numbers from tables and against scipy's own."""

import math

import numpy as np
import pytest
from scipy import stats

from lightsae.metrics.intervals import Interval, wilson


def test_students_interval_by_hand() -> None:
    # Mean 2, standard deviation 1, t of 2 degrees of freedom 4.302653.
    found = Interval.over([1, 2, 3])
    half = 4.302653 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-6)


def test_students_interval_is_scipys() -> None:
    values = np.random.default_rng(0).normal(size=17)
    test = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = Interval.over(values)
    assert (found.low, found.high) == pytest.approx((test.low, test.high))


def test_it_holds_the_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    held = [one.low <= 3 <= one.high for one in (Interval.over(3 + draw.normal(size=6)) for _ in range(2000))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_one_value_has_no_interval() -> None:
    found = Interval.over([2.5])
    assert found.report() == {"mean": 2.5, "low": None, "high": None}
    assert str(found) == "2.5"
    assert found.exponentiated().low is None


def test_wilsons_interval_by_hand() -> None:
    z = 1.959964
    for yes, of in ((0, 10), (3, 10), (24, 24)):
        share = yes / of
        middle = (share + z * z / (2 * of)) / (1 + z * z / of)
        half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
        found = Interval.share(yes, of)
        assert (found.mean, found.low, found.high) == pytest.approx((share, middle - half, middle + half), abs=1e-6)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (7, 10), (0, 50), (50, 50), (3, 1000)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert np.allclose(wilson(k, n), (expected.low, expected.high), atol=1e-12)


def test_wilson_takes_arrays_and_knows_nothing_of_no_trials() -> None:
    low, high = wilson([7, 0, 10], [10, 0, 10])
    assert low.shape == (3,)
    assert (low[1], high[1], high[2]) == (0, 1, 1)
    assert low[0] == wilson(7, 10)[0]


def test_exponentiated_keeps_the_ends_and_overflows_nowhere() -> None:
    found = Interval(0.0, -math.log(2), math.log(2)).exponentiated()
    assert (found.mean, found.low, found.high) == pytest.approx((1, 0.5, 2))
    assert math.isfinite(Interval(1e4, 0.0, 1e5).exponentiated().high or 0.0)


@pytest.mark.parametrize(
    ("one", "other", "above"),
    [
        (Interval(3.0, 2.0, 4.0), Interval(1.0, 0.0, 1.9), True),
        (Interval(3.0, 2.0, 4.0), Interval(1.0, 0.0, 2.0), False),  # they touch
        (Interval(3.0, 1.5, 4.5), Interval(1.0, 0.0, 2.0), False),
        (Interval(1.0, 0.0, 1.9), Interval(3.0, 2.0, 4.0), False),
        (Interval(3.0, None, None), Interval(1.0, 0.0, 2.0), False),
        (Interval(3.0, 2.0, 4.0), Interval(1.0, None, None), False),
    ],
)
def test_above_means_apart(one: Interval, other: Interval, above: bool) -> None:
    assert one.above(other) is above
