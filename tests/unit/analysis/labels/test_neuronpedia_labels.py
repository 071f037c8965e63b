"""Neuronpedia's explanations: the forms that an export has, and what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lightsae.analysis.labels.neuronpedia_labels import import_neuronpedia
from lightsae.errors import ConfigError

FEATURES = range(8)


def entry(index: object, description: str = "a word", **more: Any) -> dict[str, Any]:
    return {"modelId": "gpt2-small", "layer": "6-res-jb", "index": index, "description": description, **more}


ENTRIES = [
    entry("3", " the\nword  dog ", explanationModelName="gpt-4o", typeName="oai_token-act-pair"),
    entry("3", "another"),
    entry(0, "é"),
    entry("5", "  "),
]


@pytest.mark.parametrize("form", ["json", "jsonl", "jsonl.gz", "json.gz"])
def test_every_form_says_the_same(form: str, tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, ENTRIES)) + "\n\n" if form.startswith("jsonl") else json.dumps(ENTRIES)
    data = lines.encode()
    (tmp_path / f"e.{form}").write_bytes(gzip.compress(data) if form.endswith("gz") else data)
    rows = import_neuronpedia(tmp_path / f"e.{form}", features=FEATURES, layer=6)
    assert [(row["feature"], row["label"], row["source"], row["model"]) for row in rows] == [
        (3, "the word dog", "neuronpedia", "gpt-4o"),
        (0, "é", "neuronpedia", "neuronpedia"),
    ]
    told = json.loads(rows[0]["evidence"])
    assert told == {"from": "neuronpedia: gpt2-small 6-res-jb", "method": "oai_token-act-pair"}
    assert rows[0]["passed"] is None


def test_a_source_is_chosen_among_several(tmp_path: Path) -> None:
    several = [entry(1, "here"), entry(1, "there") | {"layer": "7-res-jb"}]
    (tmp_path / "e.json").write_text(json.dumps(several))
    with pytest.raises(ConfigError, match="several: gpt2-small 6-res-jb, gpt2-small 7-res-jb"):
        import_neuronpedia(tmp_path / "e.json", features=FEATURES)
    (row,) = import_neuronpedia(tmp_path / "e.json", features=FEATURES, layer=7, source="7-res-jb")
    assert row["label"] == "there"
    with pytest.raises(ConfigError, match="no explanation of '8-res-jb'"):
        import_neuronpedia(tmp_path / "e.json", features=FEATURES, source="8-res-jb")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no explanation"),
        ("[1", "not valid JSON"),
        ('{"a": 1}\n{', "line 2 is not valid JSON"),
        ("[1]", "explanation 1: no object"),
        (json.dumps([entry(1) | {"description": None}]), "description is None"),
        (json.dumps([entry(1) | {"layer": "6 res"}]), "no names of Neuronpedia"),
        (json.dumps([entry(8)]), "has no feature 8"),
        (json.dumps([entry(True)]), "index is True"),
        (json.dumps([entry("-1")]), "index is '-1'"),
        (json.dumps([entry(1, "x" * 1001)]), "1001 characters"),
        (json.dumps([entry(1) | {"layer": "5-res-jb"}]), "'5-res-jb', but the dictionary is of layer 6"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=said):
        import_neuronpedia(tmp_path / "e.jsonl", features=FEATURES, layer=6)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        import_neuronpedia(tmp_path / "none", features=FEATURES)
    (tmp_path / "e.gz").write_bytes(gzip.compress(b"[]" * 100)[:20])
    with pytest.raises(ConfigError, match="no gzip file"):
        import_neuronpedia(tmp_path / "e.gz", features=FEATURES)
