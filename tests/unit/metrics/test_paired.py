"""Exact paired tests against every draw counted one by one, against scipy, and by their level in simulations."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from lightsae.metrics.paired import holm, matched_sets, power, rank, sign_flips


def counted(own: list[bool], others: list[list[bool]]) -> float:
    """Every way to call one of each set its own, one by one."""
    sets = [[mine, *rest] for mine, rest in zip(own, others, strict=True)]
    reached = [sum(draw) >= sum(own) for draw in product(*sets)]
    return float(np.mean(reached))


@pytest.mark.parametrize("seed", range(5))
def test_matched_sets_against_every_draw(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 4, 6)
    own, others = draw.random(6) < 0.6, [draw.random(size) < 0.3 for size in sizes]
    found = matched_sets(own, others)
    assert found == pytest.approx(counted(own.tolist(), [one.tolist() for one in others]))


def test_one_other_is_mcnemars_exact_test() -> None:
    # 9 and 4 of 24, as far apart as the discordant sets allow: 7 and 2 of them.
    own = np.array([True] * 9 + [False] * 15)
    other = np.array([True] * 2 + [False] * 7 + [True] * 2 + [False] * 13)
    expected = stats.binomtest(7, 9, 0.5, alternative="greater").pvalue
    assert matched_sets(own, [np.array([one]) for one in other]) == pytest.approx(expected)
    assert expected == pytest.approx(0.0898, abs=1e-4)


def test_sets_that_are_alike_say_nothing() -> None:
    assert matched_sets(np.array([True, False]), [np.array([True]), np.array([False])]) == 1.0
    assert matched_sets(np.array([False, False]), [np.array([True]), np.array([False])]) == 1.0


def test_matched_sets_hold_their_level() -> None:
    assert power(40, 39, 0.17, 0.17, runs=500) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 500)


def test_power_of_the_demos_panel_and_of_the_one_before() -> None:
    assert power(24, 1, 0.38, 0.17, runs=500) < 0.45
    assert power(48, 47, 0.38, 0.17, runs=500) > 0.85


@pytest.mark.parametrize("n", [3, 8, 11])
def test_sign_flips_against_scipy_and_every_flip(n: int) -> None:
    draw = np.random.default_rng(n)
    # Rates of few tokens: ties, and differences of 0.
    values = draw.integers(-3, 6, n) / 24
    flips = [(np.array(signs) * values).sum() >= values.sum() - 1e-12 for signs in product((1, -1), repeat=n)]
    assert sign_flips(values) == pytest.approx(np.mean(flips))
    whole = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf, vectorized=True
    )
    assert sign_flips(values) == pytest.approx(whole.pvalue)


def test_of_more_pairs_signs_are_drawn() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 40)
    normal = stats.norm.sf(values.sum() / np.sqrt((values**2).sum()))
    assert sign_flips(values) == pytest.approx(normal, abs=0.01)
    assert sign_flips(np.ones(40)) == 1 / 10_000, "what was found is one of the draws"


def test_no_difference_is_no_evidence() -> None:
    assert sign_flips(np.zeros(5)) == 1.0
    assert sign_flips(-np.ones(5)) == 1.0
    assert sign_flips(np.ones(5)) == 1 / 32


def test_a_rank_is_low_no_oftener_than_it_says() -> None:
    draw = np.random.default_rng(1)
    found = np.array([rank(values[0], values[1:]) for values in draw.normal(size=(4000, 20))])
    assert found.min() == 1 / 20
    for level in (0.05, 0.2):
        assert (found <= level + 1e-9).mean() == pytest.approx(level, abs=3 * np.sqrt(level / 4000))
    assert rank(0.0, np.zeros(4)) == 1.0


def test_holm() -> None:
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
