"""Rules in words: what each kind of pattern says, and what is left out of a long one."""

import pytest

from lightsae.analysis.labels.patterns import CLASSES, Pattern
from lightsae.analysis.labels.wording import PHRASES, TOKENS, in_words, quoted

TEXTS = [" return", "self", "(", " {", "}", "\n    ", " ", "7", *[f"w{i}" for i in range(20)]]
START = len(TEXTS)  # what stands before a row
NUMBER, NEWLINE = CLASSES.index("a number"), CLASSES.index("a newline")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (Pattern("token", token=0), "`return`"),
        (Pattern("after", token=1, before=(2,)), "`self` after `(`"),
        (Pattern("after_two", token=1, before=(0, 2)), "`self` after `return(`"),
        (Pattern("two_before", token=2, before=(0,)), "`(` two tokens after `return`"),
        (Pattern("class_after", token_class=NUMBER, before=(2,)), "a number after `(`"),
        (Pattern("after_class", token=1, before_class=NEWLINE), "`self` after a newline"),
        (Pattern("in_state", token=7, state=1), "`7` inside a string"),
        (Pattern("class_in_state", token_class=NUMBER, state=2), "a number inside a comment"),
        (Pattern("before", token=1, after=2), "`self` before `(`"),
        (Pattern("after", token=1, before=(START,)), "`self` after the row's start"),
        (Pattern("after_class", token=1, before_class=len(CLASSES)), "`self` after the row's start"),
        (Pattern("before", token=1, after=START), "`self` before the row's end"),
    ],
    ids=lambda value: value.kind if isinstance(value, Pattern) else None,
)
def test_one_pattern(pattern: Pattern, words: str) -> None:
    assert in_words([pattern], TEXTS) == words


def test_braces_of_the_corpus_are_no_gaps() -> None:
    patterns = [Pattern("after", token=3, before=(4,)), Pattern("before", token=3, after=4), Pattern("token", token=4)]
    assert in_words(patterns, TEXTS) == "`{` after `}`; `{` before `}`; `}`"
    assert in_words([Pattern("in_state", token=3, state=1)], TEXTS) == "`{` inside a string"


def test_patterns_of_one_phrase_are_told_together() -> None:
    patterns = [
        Pattern("token", token=1),
        Pattern("after", token=1, before=(2,)),
        Pattern("token", token=0),
        Pattern("after", token=1, before=(3,)),
        Pattern("after", token=0, before=(2,)),
    ]
    assert in_words(patterns, TEXTS) == "`self`, `return`; `self` after `(`, `{`; `return` after `(`"


def test_what_reads_the_same_is_said_once() -> None:
    assert in_words([Pattern("token", token=0), Pattern("token", token=1)], [" a", "a"]) == "`a`"


def test_a_long_rule_is_cut_and_counted() -> None:
    tokens = [Pattern("token", token=8 + i) for i in range(TOKENS + 3)]
    listed = ", ".join(f"`w{i}`" for i in range(TOKENS))
    assert in_words(tokens, TEXTS) == f"{listed} and 3 more"
    phrases = [Pattern("after", token=8 + i, before=(2,)) for i in range(PHRASES + 2)]
    assert in_words(phrases, TEXTS).endswith(f"`w{PHRASES - 1}` after `(`; and 2 more")


def test_no_patterns_have_no_words() -> None:
    assert in_words([], TEXTS) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" return", "`return`"),
        (" ", "a space"),
        ("", "a space"),
        ("   ", "3 spaces"),
        ("\n", "a newline"),
        ("\n\n\n", "3 newlines"),
        ("\n    ", "a newline and 4 spaces"),
        ("\n\n\t", "2 newlines and 4 spaces"),
        ("a\nb", "`a⏎b`"),
        ("a\tb\r", "`a⇥b`"),
    ],
)
def test_a_token_is_quoted(text: str, expected: str) -> None:
    assert quoted(text) == expected
