"""When a cause is named."""

import math
from dataclasses import replace

import pytest

from helpers.planted_sae import case, sae
from lightsae.analysis.diagnose.case import Alternative, Score
from lightsae.analysis.diagnose.verdict import best_of_causes, judge


def found(cause: str, fve: float, what: str = "so") -> tuple[Alternative, Score]:
    return Alternative(cause, what, "do that", case(sae())), of(fve)


def of(fve: float, sinks: float = 0.99) -> Score:
    return Score(fve, fve, sinks, 10.0, 0.0, error=min(2.0, 1 - fve), bias=0.0)


@pytest.mark.parametrize(
    ("said", "tried", "cause"),
    [
        (0.2, [found("b_dec", 0.9)], "b_dec"),
        (0.9, [found("b_dec", 0.904)], None),
        (-5.0, [found("site", -1.0)], None),
        (0.5, [found("site", 0.8), found("b_dec", 0.9)], "b_dec"),
        (0.5, [], None),
    ],
)
def test_the_one_that_leaves_the_least_is_named_if_it_is_clearly_less(
    said: float, tried: list[tuple[Alternative, Score]], cause: str | None
) -> None:
    assert judge(of(said), tried, None).cause == cause


def test_what_explains_as_well_is_said() -> None:
    verdict = judge(of(0.1), [found("gain", 0.9), found("scale", 0.8985), found("site", 0.5)], None)
    assert (verdict.cause, verdict.as_good) == ("gain", ("scale",))


def test_what_leaves_predictions_further_off_on_average_is_no_cause() -> None:
    """Of a sound SAE more latents explain more, and its b_dec is no longer in their middle."""
    more = Score(0.9, 0.9, 0.99, 40.0, 0.0, error=0.1, bias=0.02)
    alternative = found("activation", 0.9)[0]
    assert judge(replace(of(0.5), bias=0.01), [(alternative, more)], None).cause is None
    assert judge(replace(of(0.5), bias=0.03), [(alternative, more)], None).cause == "activation"


def test_a_choice_of_latents_that_explains_far_less_is_no_cause() -> None:
    """Of an SAE that hardly learned, too many latents fire: with fewer of them less is left to learn, and explained."""
    said, fewer = replace(of(0.5), bias=0.06, gradient=0.03), of(0.35)
    known = found("activation", 0.35)[0]
    searched = replace(known, searched=True)
    assert judge(said, [(searched, fewer)], None).cause is None
    assert judge(said, [(known, fewer)], None).cause == "activation"
    assert judge(said, [(searched, of(0.45))], None).cause == "activation"


def test_what_is_searched_for_has_to_explain_more() -> None:
    known = found("activation", 0.56)[0]
    assert judge(of(0.5), [(known, of(0.56))], None).cause == "activation"
    assert judge(of(0.5), [(replace(known, searched=True), of(0.56))], None).cause is None


def test_what_the_file_itself_speaks_for_has_to_explain_about_as_well() -> None:
    known = found("threshold", 0.48)[0]
    likely = replace(known, likely=True)
    for alternative, fve, cause in (
        (likely, 0.48, "threshold"),
        (likely, 0.47, None),
        (known, 0.48, None),
        (known, 0.505, None),
    ):
        assert judge(of(0.5), [(alternative, of(fve))], None).cause == cause


def test_of_a_cause_the_best_counts() -> None:
    best = best_of_causes([found("site", 0.3, "a"), found("b_dec", 0.5), found("site", 0.7, "b")])
    assert [(cause, its[0].what) for cause, its in best.items()] == [("site", "b"), ("b_dec", "so")]


@pytest.mark.parametrize(
    ("sinks", "sees_bos", "cause"),
    [
        (0.1, None, "bos"),
        (0.1, True, "bos"),
        (0.1, False, None),
        (0.74, None, "bos"),
        (0.76, None, None),
        (0.98, None, None),
        (math.nan, None, None),
    ],
)
def test_first_tokens_that_training_never_saw(sinks: float, sees_bos: bool | None, cause: str | None) -> None:
    assert judge(of(0.8, sinks), [found("b_dec", 0.8)], sees_bos).cause == cause
