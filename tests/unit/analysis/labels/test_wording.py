"""Rules in words: what each kind of pattern says, and what is left out of a long one."""

import pytest

from lightsae.analysis.labels.patterns import CLASSES, Pattern
from lightsae.analysis.labels.python_source import ASPECTS, CLASS, DOCSTRING
from lightsae.analysis.labels.wording import PHRASES, TOKENS, in_short, in_words, names_of, quoted

TEXTS = [" return", "self", "(", " {", "}", "\n    ", " ", "7", *[f"w{i}" for i in range(20)]]
START = len(TEXTS)  # what stands before a row
NUMBER, NEWLINE = CLASSES.index("a number"), CLASSES.index("a newline")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (Pattern("token", token=0), "` return`"),
        (Pattern("after", token=1, before=(2,)), "`self` after `(`"),
        (Pattern("after_two", token=1, before=(0, 2)), "`self` after ` return` then `(`"),
        (Pattern("two_before", token=2, before=(0,)), "`(` two tokens after ` return`"),
        (Pattern("class_after", token_class=NUMBER, before=(2,)), "a number after `(`"),
        (Pattern("after_class", token=1, before_class=NEWLINE), "`self` after a newline"),
        (Pattern("region", aspect="region", value=DOCSTRING), "anything inside a docstring"),
        (Pattern("region_token", token=1, aspect="region", value=DOCSTRING), "`self` inside a docstring"),
        (Pattern("role_class", token_class=NUMBER, aspect="role", value=CLASS), f"a number {ASPECTS['role'][CLASS]}"),
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
    assert in_words([pattern], names_of(TEXTS)) == words


def test_braces_of_the_corpus_are_no_gaps() -> None:
    patterns = [Pattern("after", token=3, before=(4,)), Pattern("before", token=3, after=4), Pattern("token", token=4)]
    assert in_words(patterns, names_of(TEXTS)) == "` {` after `}`; ` {` before `}`; `}`"


def test_patterns_that_differ_in_their_token_alone_are_a_list() -> None:
    patterns = [
        Pattern("token", token=1),
        Pattern("after", token=1, before=(2,)),
        Pattern("token", token=0),
        Pattern("after", token=1, before=(3,)),
        Pattern("after", token=0, before=(2,)),
    ]
    assert in_words(patterns, names_of(TEXTS)) == "`self`, ` return`; `self`, ` return` after `(`; `self` after ` {`"


def test_what_the_vocabulary_tells_apart_the_words_tell_apart() -> None:
    names = names_of([" a", "a", "a\r", "\ufffd", "\ufffd", "\n\t", "\n    ", "", " "])
    assert len(set(names)) == len(names)
    assert names[:2] == ["` a`", "`a`"]
    assert names[3:5] == ["`\ufffd` (token 3)", "`\ufffd` (token 4)"]
    assert in_words([Pattern("token", token=0), Pattern("token", token=1)], names) == "` a`, `a`"


def test_the_words_of_a_label_leave_nothing_out_and_those_of_a_detector_count_it() -> None:
    names = names_of(TEXTS)
    tokens = [Pattern("token", token=8 + i) for i in range(TOKENS + 3)]
    assert in_words(tokens, names) == ", ".join(names[8 : 8 + TOKENS + 3])
    assert in_short(tokens, names) == ", ".join(names[8 : 8 + TOKENS]) + " and 3 more"
    phrases = [Pattern("after", token=8, before=(8 + i,)) for i in range(PHRASES + 2)]
    assert in_words(phrases, names) == "; ".join(f"`w0` after {names[8 + i]}" for i in range(PHRASES + 2))
    assert in_short(phrases, names).endswith(f"after `w{PHRASES - 1}`; and 2 more")


def test_no_patterns_have_no_words() -> None:
    assert in_words([], TEXTS) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" return", "` return`"),
        (" ", "a space"),
        ("", "an empty token"),
        ("   ", "3 spaces"),
        ("\n", "a newline"),
        ("\n\n\n", "3 newlines"),
        ("\n    ", "a newline and 4 spaces"),
        ("\n\n\t", "`⏎⏎⇥`"),
        ("a\nb", "`a⏎b`"),
        ("a\tb\r", "`a⇥b␍`"),
    ],
)
def test_a_token_is_quoted(text: str, expected: str) -> None:
    assert quoted(text) == expected
