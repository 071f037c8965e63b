"""Concepts at tokens: whole documents, whatever rows they are cut into."""

import numpy as np
import pytest

from lightsae.analysis.labels import concepts
from lightsae.analysis.labels.concepts import aspects_of
from lightsae.analysis.labels.patterns import PatternKeys
from lightsae.analysis.labels.python_source import ASPECTS, CODE, DOCSTRING, INDENT, TARGET

PIECES = ["<|end|>", "def", " f", "(", "):", "\n", "   ", ' """', "Says", " it", ".", '"""', " x", " =", " 1", "0"]
TEXTS = [*PIECES, "once", " upon", " a", " time"]
DOCUMENT = [
    "def",
    " f",
    "(",
    "):",
    "\n",
    "   ",
    ' """',
    "Says",
    "\n",
    "   ",
    " it",
    ".",
    '"""',
    "\n",
    "   ",
    " x",
    " =",
    " 1",
    "0",
    "\n",
]


def tokens(*pieces: str) -> np.ndarray:
    return np.array([[TEXTS.index(piece) for piece in pieces]], np.int32)


def test_a_token_stands_where_its_first_sign_stands() -> None:
    aspects = aspects_of(tokens(*DOCUMENT), TEXTS)
    region = dict(zip(DOCUMENT[5:], aspects["region"][0, 5:].tolist(), strict=True))
    assert [region[piece] for piece in (' """', "Says", " it", ".", '"""')] == [DOCSTRING] * 5
    # The newline and the indentation inside the docstring are part of it; those after it are not.
    assert aspects["region"][0, [8, 9]].tolist() == [DOCSTRING] * 2
    assert aspects["region"][0, 15:19].tolist() == [CODE] * 4
    assert aspects["role"][0, 15] == TARGET
    # The newline, the spaces and the quote that lead to the deeper line all stand at its start.
    assert aspects["line"][0, 4:7].tolist() == [INDENT] * 3
    assert [ASPECTS["depth"][value] for value in aspects["depth"][0, [0, 15]]] == [
        "without indentation",
        "at depth 1 of indentation",
    ]


def test_a_document_is_put_together_again_from_its_rows() -> None:
    whole = aspects_of(tokens(*DOCUMENT), TEXTS)
    rows = tokens(*DOCUMENT).reshape(4, 5)
    documents = np.zeros((4, 5), np.int64)
    joined = aspects_of(rows, TEXTS, documents, np.arange(3, 7))
    for name, values in whole.items():
        assert np.array_equal(joined[name].ravel(), values.ravel()), name
    # A row that is missing between, or another document, ends it: the docstring is begun, and not known to be one.
    apart = aspects_of(rows, TEXTS, documents, np.array([3, 4, 6, 7]))
    alone = aspects_of(rows[2:3], TEXTS)
    assert np.array_equal(apart["region"][2], alone["region"][0])


def test_documents_in_one_row_are_read_each_for_itself_and_their_separator_is_no_text() -> None:
    twice = tokens(*DOCUMENT, "<|end|>", *DOCUMENT)
    documents = np.array([[0] * (len(DOCUMENT) + 1) + [1] * len(DOCUMENT)])
    both, one = aspects_of(twice, TEXTS, documents, np.array([0])), aspects_of(tokens(*DOCUMENT), TEXTS)
    for name, values in one.items():
        assert np.array_equal(both[name][0, : len(DOCUMENT)], values[0])
        assert np.array_equal(both[name][0, len(DOCUMENT) + 1 :], values[0])


def test_prose_has_no_concepts_and_no_pattern_of_them_holds() -> None:
    prose = tokens(*["once", " upon", " a", " time"] * 8)
    assert not any(values.any() for values in aspects_of(prose, TEXTS).values())
    keys = PatternKeys(prose, TEXTS)
    for aspect in ASPECTS:
        assert {*keys.of(aspect), *keys.of(f"{aspect}_token"), *keys.of(f"{aspect}_class")} == {-1}


def test_a_document_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(concepts, "read_source", lambda text: read.append(text))
    documents = np.repeat([[0], [0], [1], [1]], 5, axis=1)
    keys = PatternKeys(tokens(*DOCUMENT).reshape(4, 5), TEXTS, documents, np.arange(4))
    for aspect in ASPECTS:
        keys.of(aspect)
    assert read == ["".join(DOCUMENT[:10]), "".join(DOCUMENT[10:])]


def test_no_text_has_no_concepts() -> None:
    empty = aspects_of(np.empty((0, 5), np.int32), TEXTS, np.empty((0, 5), np.int64), np.empty(0, np.int64))
    assert {name: values.shape for name, values in empty.items()} == dict.fromkeys(ASPECTS, (0, 5))
