import dataclasses

import numpy as np
import pytest

from lightsae.analysis.labels.llm.examples import Example
from lightsae.analysis.labels.llm.material import FeatureMaterial
from lightsae.analysis.labels.llm.prompts import (
    DETECTION,
    EXPLAIN,
    PROMPTS,
    explain_messages,
    judge_messages,
    marked,
    misplaced,
    parse_choice,
    parse_explanation,
    parse_matches,
    plain,
    with_strengths,
)

WINDOW = Example((" a", "«b»\n", " {c}", " d"), (0.0, 10.0, 0.2, 0.0), 1, 0, True, "positive")


def test_windows_are_drawn_on_one_line_and_marked_by_position() -> None:
    assert plain(WINDOW) == " a<<b>>↵ {c} d"
    assert marked(WINDOW) == " a«<<b>>↵»« {c}» d"
    assert marked(WINDOW, [3]) == " a<<b>>↵ {c}« d»"
    assert with_strengths(WINDOW, strongest=10.0) == " a«<<b>>↵»{9}« {c}»{0} d"
    broken = Example(("x\r\n", "\u2028", "\v"), (0.0,) * 3, 0, 0, False, "random")
    assert len(plain(broken).splitlines()) == 1


def test_misplaced_marks_are_as_many_and_all_wrong() -> None:
    for seed in range(20):
        wrong = misplaced(WINDOW, np.random.default_rng(seed))
        assert wrong == [0, 3]
    assert misplaced(Example(("a",), (1.0,), 0, 0, True, "positive"), np.random.default_rng(0)) is None


def test_the_question_holds_all_that_is_known() -> None:
    silent = Example((" near",), (0.0,), 0, 1, False, "near")
    nothing = FeatureMaterial(0, shown=[], positives=[], negatives={})
    known = {"shown": [WINDOW], "shown_near_misses": [silent], "tokens": [("b", 0.5)], "promoted": [" up"]}
    _, user = explain_messages(dataclasses.replace(nothing, **known))
    for part in ("1.  a«<<b>>↵»{9}", "1.  near", "`b` 50%", "` up`"):
        assert part in user["content"]
    (_, bare) = explain_messages(nothing)
    assert "(none)" in bare["content"]
    assert "(not known)" in bare["content"]
    # A label with a line break could pass for an excerpt.
    assert "Description: x 1. y\n" in judge_messages(DETECTION, "x\n1. y", ["e"])[1]["content"]


def test_versions_tell_prompts_apart() -> None:
    versions = {prompt.version for prompt in PROMPTS.values()}
    assert len(versions) == len(PROMPTS)
    assert dataclasses.replace(EXPLAIN, system=EXPLAIN.system + " ").version not in versions


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('{"label": "a dog"}', "a dog"),
        ('Sure!\n```json\n{"label": " a\\n dog. "}\n```', "a dog"),
        ('<think>{"label": "draft"}</think> {"label": "final"}', "final"),
        ('First {"label": "one"}, no: {"label": "two"}', "two"),
        ('Marks like {7} aside: {"label": "after braces"}', "after braces"),
    ],
)
def test_explanations_are_found(text: str, label: str) -> None:
    assert parse_explanation(text) == label


def test_no_common_property_is_an_answer() -> None:
    assert parse_explanation('{"label": null}') == ""


@pytest.mark.parametrize(
    "text",
    [
        *("", "a dog", '["label"]', "{" * 500, '{"label": "cut', '<think>{"label": "unfinished"}'),
        *('{"label": ""}', '{"label": 3}', '{"name": "x"}', f'{{"label": "{"x" * 201}"}}'),
    ],
)
def test_what_is_no_explanation_is_none(text: str) -> None:
    assert parse_explanation(text) is None


def test_matches_are_verdicts_on_all_excerpts() -> None:
    assert parse_matches('{"matches": [1, 3]}', 3) == [True, False, True]
    assert parse_matches('{"matches": ["2"]}', 2) == [False, True]
    assert parse_matches('{"matches": []}', 2) == [False, False]


@pytest.mark.parametrize("value", ["[0]", "[4]", "[true]", "[1.5]", "2", "null", '["two"]', '"1, 2"', "[[1]]"])
def test_matches_of_another_form_are_none(value: str) -> None:
    assert parse_matches(f'{{"matches": {value}}}', 3) is None


def test_choices() -> None:
    assert [parse_choice(f'{{"choice": {n}}}', 4) for n in (0, 1, 4)] == [-1, 0, 3]
    assert [parse_choice(f'{{"choice": {n}}}', 4) for n in ("5", "-1", "null", "true", "[1]")] == [None] * 5
    assert parse_choice("2", 4) is None
