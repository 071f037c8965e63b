"""Concepts that a file names, and those of any text's characters."""

import json
from pathlib import Path

import pytest

from helpers.concept_texts import rows_of, said_at
from lightsae.analysis.concepts.characters import character_truth
from lightsae.analysis.concepts.documents import DocumentText
from lightsae.analysis.concepts.files import ConceptFile
from lightsae.analysis.concepts.read import marked, read_truth
from lightsae.analysis.concepts.truth import Marks
from lightsae.errors import ConfigError, FormatError

TEXT = "Ada Lovelace wrote to Babbage."
SPANS = [[0, 12, "name.person"], [22, 29, "name.person"], [13, 18, "verb"]]


def test_a_file_marks_the_documents_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"text": TEXT, "spans": SPANS}) + "\n\n" + json.dumps({"text": "unused"}) + "\n")
    told = ConceptFile.read(str(path))
    rows, vocabulary = rows_of("Of something else.", TEXT)
    truth = read_truth(rows, vocabulary, lambda done: None, told)
    assert truth.names == ("name", "name.person", "verb")
    assert truth.parents.tolist() == [-1, 0, -1]
    assert said_at(truth, rows, vocabulary, "name") == ["Ada", "Lovelace", "Babbage"]
    assert said_at(truth, rows, vocabulary, "verb") == ["wrote"]
    assert truth.known.tolist() == [False] * 4 + [True] * 6


def test_spaces_may_differ_and_the_text_may_end_before_the_document(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    spans = [[0, 13, "who"], [23, 30, "who"]]
    path.write_text(json.dumps([{"text": "Ada  Lovelace\nwrote to Babbage.", "spans": spans}]))
    rows, vocabulary = rows_of("Ada Lovelace wrote to Bab")
    truth = marked(rows, vocabulary, ConceptFile.read(str(path)).mark, lambda done: None)
    assert said_at(truth, rows, vocabulary, "who") == ["Ada", "Lovelace", "Bab"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no concept"),
        ('{"text": "a"}', "names no concept"),
        ("{", "line 1 is not valid JSON"),
        ('{"spans": []}', "document 1 has no text"),
        ('{"text": "a", "spans": 3}', "the spans of document 1 are no list"),
        ('{"text": "ab", "spans": [[0, 3, "x"]]}', "goes from 0 to 3, and its text has 2 characters"),
        ('{"text": "ab", "spans": [[1, 1, "x"]]}', "goes from 1 to 1"),
        ('{"text": "ab", "spans": [[0, 1]]}', "where [START, END, NAME] should be"),
        ('{"text": "ab", "spans": [[0, true, "x"]]}', "where [START, END, NAME] should be"),
        ('{"text": "ab", "spans": [[0, 1, "x..y"]]}', "is called 'x..y'"),
        ("[[]]", "document 1 has no text"),
        ('{"text": "ab", "spans": [[0, 1, "a\\n"]]}', "is called"),
        (json.dumps({"text": "ab", "spans": [[0, 1, ".".join("a" * 17)]]}), "a kind of more than 15 others"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(text)
    with pytest.raises(FormatError) as caught:
        ConceptFile.read(str(path))
    assert said in str(caught.value)
    with pytest.raises(ConfigError, match="name a file that exists"):
        ConceptFile.read(str(tmp_path / "missing.jsonl"))


def test_spans_of_one_name_that_overlap_are_one(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"text": TEXT, "spans": [[4, 12, "a"], [0, 5, "a"], [0, 3, "b"], [13, 18, "a"]]}))
    told, marks = ConceptFile.read(str(path)), Marks()
    assert told.mark(DocumentText(0, [TEXT]), marks) == len(TEXT)
    names = list(marks.names)
    found = sorted((names[concept], start, end) for concept, start, end in marks.take().tolist())
    assert found == [("a", 0, 12), ("a", 13, 18), ("b", 0, 3)]


def test_characters_of_any_text() -> None:
    text = "Self says self, and self_made 42 SAY \u00e9t\u00e9.\n  So" + " self" * 60
    rows, vocabulary = rows_of(text)
    truth = character_truth(rows, vocabulary)
    assert truth.known.all()

    def at(name: str) -> list[str]:
        return said_at(truth, rows, vocabulary, name)

    assert at("digits.2") == ["42"]
    assert at("letters.upper") == ["SAY"]
    assert at("letters.title") == ["Self", "So"]
    assert at("beyond_ascii") == ["\u00e9t\u00e9"]
    assert at("space.with_newline") == [""]
    assert at("signs.ascii.one") == [",", "."]
    assert at("letters_and_others") == ["self_made"]
    assert at("first_letter.a") == ["and"]
    assert at("first_letter.s") == ["Self", "says", "self", "SAY", "So", *["self"] * 60]
    assert at("first_letter.s.self") == ["Self", "self", *["self"] * 60]
    assert "first_letter.s.says" not in truth.place
    assert at("word.goes_on") == []
