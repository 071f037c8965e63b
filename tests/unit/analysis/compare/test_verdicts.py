"""Verdicts: which side is better, all tests together, and what L0 takes away."""

import numpy as np
import pytest

from lightsae.analysis.compare.noise import Readings
from lightsae.analysis.compare.verdicts import Verdict, dominant, same_l0, verdicts

L0, NOISE = 32.0, (-0.001, 0.0, 0.001)


def recipe(l0: float = L0, **figures: float) -> dict[str, Readings]:
    """Three SAEs whose figures differ by a thousandth of a unit."""
    values = {"l0": l0, **figures}
    return {name: Readings(value + np.array(NOISE), None, 0.0) for name, value in values.items()}


def words(found: list[Verdict]) -> list[str]:
    return [one.word for one in found]


@pytest.mark.parametrize(
    ("name", "better", "word"), [("fve", "higher", "better"), ("mse", "lower", "worse"), ("kl", "lower", "worse")]
)
def test_the_larger_one_is_better_or_worse(name: str, better: str, word: str):
    found = verdicts({"a": recipe(**{name: 0.8}), "b": recipe(**{name: 0.7})}, {name: better})
    assert words(found) == [word]
    assert found[0].difference == pytest.approx(0.1)
    assert found[0].low < 0.1 < found[0].high
    assert found[0].smallest < 0.1
    swapped = verdicts({"b": recipe(**{name: 0.7}), "a": recipe(**{name: 0.8})}, {name: better})
    assert words(swapped) == [{"better": "worse", "worse": "better"}[word]]


def test_less_than_the_noise_cannot_be_told():
    found = verdicts({"a": recipe(fve=0.7001), "b": recipe(fve=0.7)}, {"fve": "higher"})
    assert words(found) == ["cannot tell"]
    assert found[0].why == ""
    assert found[0].smallest > 0.0001


def test_more_figures_and_pairs_ask_for_more():
    a, b = recipe(fve=0.7035, dead_fraction=0.1), recipe(fve=0.7, dead_fraction=0.1001)
    alone = verdicts({"a": a, "b": b}, {"fve": "higher"})[0]
    beside = verdicts({"a": a, "b": b}, {"fve": "higher", "dead_fraction": "lower"})[0]
    assert alone.word == "better"
    assert beside.p == pytest.approx(2 * alone.p)
    assert beside.smallest > alone.smallest
    assert (beside.low, beside.high) == (alone.low, alone.high)
    three = verdicts({"a": a, "b": b, "c": b}, {"fve": "higher"})
    assert [(one.first, one.second) for one in three] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert three[2].why == "equal" or three[2].word == "cannot tell"


@pytest.mark.parametrize("unknown", [0.0, 0.1])
def test_what_has_no_noise_takes_nothing_from_the_others(unknown: float):
    """Dense latents, of which no SAE has any, or of which each has as many."""
    a, b = recipe(fve=0.7035), recipe(fve=0.7)
    alone = verdicts({"a": a, "b": b}, {"fve": "higher"})
    a["dense_fraction"] = Readings(np.full(3, unknown), None, 0.0)
    b["dense_fraction"] = Readings(np.zeros(3), None, 0.0)
    beside = verdicts({"a": a, "b": b}, {"dense_fraction": "lower", "fve": "higher"})
    assert beside[1] == alone[0]
    assert (beside[0].word, beside[0].p, beside[0].smallest) == ("cannot tell", 1.0, None)


@pytest.mark.parametrize(
    ("name", "better", "ahead", "behind", "fewer", "more"),
    [
        ("fve", "higher", 0.8, 0.7, "better", "cannot tell"),
        ("kl", "lower", 0.1, 0.2, "better", "cannot tell"),
        ("dead_fraction", "lower", 0.1, 0.2, "better", "cannot tell"),
        ("dense_fraction", "lower", 0.1, 0.2, "cannot tell", "better"),
        ("another", "higher", 0.8, 0.7, "cannot tell", "cannot tell"),
    ],
)
def test_what_l0_may_have_done_does_not_count(
    name: str, better: str, ahead: float, behind: float, fewer: str, more: str
):
    for l0, word in ((L0 / 2, fewer), (2 * L0, more), (1.04 * L0, "better")):
        one = verdicts({"a": recipe(l0, **{name: ahead}), "b": recipe(**{name: behind})}, {name: better})[0]
        assert one.word == word, l0
        assert ("L0" in one.why) == (word == "cannot tell")


def test_a_figure_that_a_recipe_lacks_is_left_out():
    assert verdicts({"a": recipe(fve=0.8), "b": recipe()}, {"fve": "higher"}) == []


def test_no_noise_no_verdict():
    alone = {name: Readings(np.array([value]), None, 0.0) for name, value in {"l0": L0, "fve": 0.9}.items()}
    other = {**alone, "fve": Readings(np.array([0.1]), None, 0.0)}
    one = verdicts({"a": alone, "b": other}, {"fve": "higher"})[0]
    assert (one.word, one.smallest, one.low) == ("cannot tell", None, None)
    assert "no noise is known" in one.why


@pytest.mark.parametrize(
    ("a", "b", "which"),
    [
        (recipe(fve_no_sinks=0.8, ce_recovered_no_sinks=0.9), recipe(fve_no_sinks=0.7, ce_recovered_no_sinks=0.9), 0),
        (recipe(fve_no_sinks=0.7), recipe(fve_no_sinks=0.8), 1),
        (recipe(16, fve_no_sinks=0.8), recipe(fve_no_sinks=0.7), 0),
        (recipe(64, fve_no_sinks=0.8), recipe(fve_no_sinks=0.7), None),
        # Ahead with fewer latents, but behind in what more latents may have given the other.
        (
            recipe(16, fve_no_sinks=0.8, ce_recovered_no_sinks=0.8),
            recipe(fve_no_sinks=0.7, ce_recovered_no_sinks=0.9),
            None,
        ),
        (recipe(fve_no_sinks=0.8), recipe(fve_no_sinks=0.8), None),
    ],
)
def test_the_better_choice_at_any_l0(a: dict, b: dict, which: int | None):
    judged = {"fve_no_sinks": "higher", "ce_recovered_no_sinks": "higher"}
    found = verdicts({"a": a, "b": b}, judged)
    assert dominant(found, (a["l0"].mean, b["l0"].mean)) == which


def test_l0_is_the_same_within_a_share():
    assert same_l0(0.0, 0.0, 0.0)
    assert not same_l0(10.0, 11.0, 0.05)
