"""The noise of a difference: Welch's test over seeds, pairs over documents, both together; and what could be seen."""

import numpy as np
import pytest
from scipy import stats

from lightsae.analysis.compare.noise import Difference, Readings, difference


def seeds(*values: float, deviations: np.ndarray | None = None, documents: float = 40.0) -> Readings:
    return Readings(np.array(values), deviations, documents)


def test_over_seeds_it_is_welchs_test():
    a, b = (0.71, 0.74, 0.70, 0.73), (0.65, 0.61, 0.69)
    one, expected = difference(seeds(*a), seeds(*b)), stats.ttest_ind(a, b, equal_var=False)
    assert one.p == pytest.approx(expected.pvalue)
    assert one.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (one.seeds, one.text) == ("both", False)


def test_of_two_saes_the_documents_are_the_sample_in_pairs():
    rng = np.random.default_rng(0)
    text = rng.normal(size=60)
    a, b = (text + 0.1 * rng.normal(size=60) for _ in range(2))
    one = difference(seeds(0.9, deviations=a[None]), seeds(0.7, deviations=b[None]))
    assert one.error == pytest.approx(np.linalg.norm(a - b))
    assert one.freedom == pytest.approx(39)
    assert (one.seeds, one.text) == ("none", True)


def test_both_noises_add_up():
    text = np.full((1, 4), 0.05)
    a, b = seeds(0.71, 0.74, 0.70, deviations=text.repeat(3, 0)), seeds(0.6, 0.66, 0.61, deviations=np.zeros((3, 4)))
    one = difference(a, b)
    parts = np.array([0.01, a.variance / 3, b.variance / 3])
    assert one.error == pytest.approx(np.sqrt(parts.sum()))
    assert one.freedom == pytest.approx(parts.sum() ** 2 / (parts**2 / [39, 2, 2]).sum())


def test_a_single_sae_is_taken_to_vary_as_those_with_several_do():
    several, single = seeds(0.71, 0.74, 0.70), seeds(0.6)
    one = difference(several, single)
    assert one.error == pytest.approx(np.sqrt(several.variance * (1 + 1 / 3)))
    assert (one.freedom, one.seeds) == (pytest.approx(2), "assumed")
    other = difference(seeds(0.8), single, [several])
    assert other.error == pytest.approx(np.sqrt(2 * several.variance))
    assert other.seeds == "assumed"


def test_a_third_recipe_changes_nothing_where_both_have_several():
    a, b, third = seeds(0.71, 0.74), seeds(0.6, 0.65), seeds(0.1, 0.9, 0.5)
    assert difference(a, b, [third]) == difference(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [(seeds(0.7), seeds(0.6)), (seeds(0.7, 0.7, 0.7), seeds(0.1, 0.1, 0.1)), (seeds(np.nan, 0.2), seeds(0.1, 0.3))],
)
def test_where_no_noise_is_known_nothing_is_found(a: Readings, b: Readings):
    one = difference(a, b)
    assert (one.error, one.p, one.interval(), one.smallest(0.05)) == (None, 1.0, (None, None), None)


def world(rng: np.random.Generator, *, n: int = 3, documents: int = 30) -> tuple[Readings, Readings]:
    """Two groups of SAEs of one recipe on one text: seeds, and documents that are harder for some of the SAEs."""
    levels = rng.normal(0, 1.0, 2 * n)
    harder = rng.standard_t(4, documents)[None] + rng.normal(0, 2.0, (2 * n, documents))
    values = levels + harder.mean(1)
    deviations = (harder - harder.mean(1, keepdims=True)) / np.sqrt(documents * (documents - 1))
    first, second = (Readings(values[part], deviations[part], float(documents)) for part in (slice(n), slice(n, 2 * n)))
    return first, second


def test_reseeds_are_told_apart_as_rarely_as_is_said_and_what_is_said_to_be_visible_is_seen():
    rng = np.random.default_rng(0)
    pairs = [difference(*world(rng)) for _ in range(600)]
    assert 0.01 < np.mean([one.p <= 0.05 for one in pairs]) <= 0.05
    said = float(np.median([one.smallest(0.05) for one in pairs]))
    limits = stats.t.isf(0.025, [one.freedom for one in pairs])
    seen = np.array([(one.value + said) / one.error for one in pairs]) > limits
    assert 0.8 <= seen.mean() < 0.95


@pytest.mark.parametrize(("level", "freedom"), [(0.05, 2.0), (0.05, 6.0), (0.01, 4.0), (0.05, 60.0)])
def test_what_would_be_seen_is_seen_in_four_of_five_cases(level: float, freedom: float):
    rng = np.random.default_rng(1)
    errors = np.sqrt(rng.chisquare(freedom, 40_000) / freedom)
    # The median of what would be said over all of them.
    shift = Difference(0.0, ((1.0, freedom),), "both", True).smallest(level) * np.median(errors)
    found = np.abs(rng.normal(shift, 1, 40_000)) / errors > stats.t.isf(level / 2, freedom)
    assert found.mean() == pytest.approx(0.8, abs=0.015)


def test_with_many_degrees_of_freedom_it_is_the_usual_formula():
    one = Difference(0.0, ((0.04, 1e6),), "none", True)
    assert one.smallest(0.05) == pytest.approx(0.2 * (1.96 + 0.8416), rel=1e-3)
