"""Patterns hold where they say: every kind against its meaning, token by token."""

import itertools

import numpy as np
import pytest

from lightsae.analysis.labels.concepts import aspects_of
from lightsae.analysis.labels.patterns import (
    CLASSES,
    KINDS,
    STATES,
    Pattern,
    PatternKeys,
    class_of,
    patterns_of,
    shifted,
    states_of,
)
from lightsae.errors import FormatError

TEXTS = [" ", "\n", "7", " the", "ing", " The", '"', "#", "+ ", "é"]
NOTHING = len(CLASSES)


def holds(pattern: Pattern, row: list[int], states: list[int], aspects: dict[str, list[int]], place: int) -> bool:
    """Say by its fields alone whether a pattern holds at a token."""

    def token(by: int) -> int:
        return row[place + by] if 0 <= place + by < len(row) else len(TEXTS)

    def kind(by: int) -> int:
        return class_of(TEXTS[token(by)]) if token(by) < len(TEXTS) else NOTHING

    if pattern.aspect and (pattern.value == 0 or aspects[pattern.aspect][place] != pattern.value):
        return False
    first = -2 if pattern.kind == "two_before" else -len(pattern.before)
    return (
        pattern.token in (-1, token(0))
        and pattern.token_class in (-1, kind(0))
        and all(token(first + i) == given for i, given in enumerate(pattern.before))
        and pattern.before_class in (-1, kind(-1))
        and pattern.state in (-1, states[place])
        and pattern.after in (-1, token(1))
    )


@pytest.mark.parametrize("kind", [*KINDS, "in_state", "class_in_state"])
def test_a_pattern_holds_where_its_key_stands(kind: str) -> None:
    tokens = np.random.default_rng(0).integers(0, len(TEXTS), (6, 9)).astype(np.int32)
    keys = PatternKeys(tokens, TEXTS)
    states = states_of(tokens, TEXTS).tolist()
    aspects = [aspects_of(row[None], TEXTS) for row in tokens]
    of_row = [{name: values[0].tolist() for name, values in of.items()} for of in aspects]
    places = [(row, column) for row in range(6) for column in range(9)]
    for key in np.unique(keys.of(kind)).tolist():
        if key < 0:  # nothing is known there
            continue
        pattern = keys.pattern(kind, key)
        assert pattern.kind == kind
        expected = [holds(pattern, tokens[row].tolist(), states[row], of_row[row], column) for row, column in places]
        assert (keys.of(kind) == key).tolist() == expected, pattern


def test_keys_do_not_depend_on_the_text_around() -> None:
    # The same row gives the same keys in another text: only so can a rule be tested elsewhere.
    draw = np.random.default_rng(1)
    tokens = draw.integers(0, len(TEXTS), (5, 8)).astype(np.int32)
    alone, among = PatternKeys(tokens[3:4], TEXTS), PatternKeys(tokens, TEXTS)
    for kind in KINDS:
        assert np.array_equal(alone.of(kind), among.of(kind)[24:32]), kind


def test_shifted_ends_at_the_row() -> None:
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    assert shifted(tokens, 1, 9).tolist() == [[9, 1, 2], [9, 4, 5]]
    assert shifted(tokens, 2, 9).tolist() == [[9, 9, 1], [9, 9, 4]]
    assert shifted(tokens, -1, 9).tolist() == [[2, 3, 9], [5, 6, 9]]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" ", "a space"),
        ("", "a space"),
        ("   ", "a space"),
        ("\n    ", "a newline"),
        ("7", "a number"),
        (" 1024", "a number"),
        (" the", "a word"),
        ("ing", "the rest of a word"),
        (" The", "a capitalised word"),
        ("Self", "a capitalised word"),
        (" HTTP", "an upper-case word"),
        ("A", "an upper-case word"),
        (" snake_case", "an identifier"),
        ("x1", "an identifier"),
        ("camelCase", "an identifier"),
        (" ==", "punctuation"),
        ("):", "punctuation"),
        ("→", "another sign"),
        (" ×", "another sign"),  # noqa: RUF001
    ],
)
def test_classes(text: str, name: str) -> None:
    assert CLASSES[class_of(text)] == name


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # A digit for the state in which each sign begins: 0 outside, 1 string, 2 comment, 3 long string.
        ("a'b'c", "00110"),
        ('x"\'"y', "00110"),
        ("a#b'c\nd", "0022220"),
        ("'a#b'c", "011110"),
        ("'a\nb", "0110"),
        ('"""a\'b\n"""c', "0333330"),
    ],
    ids=["string", "quote in a string", "comment", "hash in a string", "unclosed string", "long string"],
)
def test_states_of_source_code(source: str, expected: str) -> None:
    pieces = ['"""', *sorted(set(source))]
    texts = list(dict.fromkeys(pieces))
    ids: list[int] = []
    place = 0
    while place < len(source):
        piece = '"""' if source.startswith('"""', place) else source[place]
        ids.append(texts.index(piece))
        place += len(piece)
    states = states_of(np.array([ids], np.int32), texts)[0]
    assert "".join(map(str, states)) == expected
    assert len(STATES) == 4


def test_each_row_begins_outside() -> None:
    tokens = np.array([[0, 1, 1], [1, 1, 1]], np.int32)
    assert states_of(tokens, ['"', "a"]).tolist() == [[0, 1, 1], [0, 0, 0]]


def test_several_quotes_in_one_token() -> None:
    # `"")` opens and closes; `='` opens.
    for text, after in (('"")', 0), ("='", 1), ("#'", 2)):
        assert states_of(np.array([[0, 1]], np.int32), [text, "x"]).tolist() == [[0, after]]


def test_patterns_of_one_kind_have_keys_of_their_own() -> None:
    # Every pair of tokens, once: no two pairs share a key.
    pairs = np.array(list(itertools.product(range(len(TEXTS)), repeat=2)), np.int32)
    keys = PatternKeys(pairs, TEXTS)
    assert len(np.unique(keys.of("after").reshape(-1, 2)[:, 1])) == len(pairs)
    assert len(np.unique(keys.of("before").reshape(-1, 2)[:, 0])) == len(pairs)


def test_the_patterns_of_a_rule_are_read_back() -> None:
    assert patterns_of('{"patterns": [["token", 7], ["in_state", 3]], "shares": [0.9, 0.1]}') == (
        ("token", 7),
        ("in_state", 3),
    )
    assert patterns_of('{"token": ["x"]}') == ()


@pytest.mark.parametrize(
    "rule",
    [
        *("", "{", "[]", "7", "[" * 5000, '{"patterns": 7}', '{"patterns": [7]}', '{"patterns": [["token"]]}'),
        *('{"patterns": [["tokne", 7]]}', '{"patterns": [[["token"], 7]]}', '{"patterns": [["token", "7"]]}'),
        *('{"patterns": [["token", true]]}', '{"patterns": [["token", 99999999999999999999]]}', '{"patterns": null}'),
    ],
)
def test_a_damaged_rule_is_one_line(rule: str) -> None:
    with pytest.raises(FormatError, match=r"^The rule .* of a label") as caught:
        patterns_of(rule)
    assert "\n" not in str(caught.value)
