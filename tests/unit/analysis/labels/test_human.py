import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from helpers.fake_dictionary import fake_tables
from lightsae.analysis.dictionary.schema import LABELS
from lightsae.analysis.labels.human import COLUMNS, export_csv, import_csv
from lightsae.errors import ConfigError

ID = "ab" * 32
TABLES = fake_tables(16)


def exported(path: Path, **kwargs: Any) -> list[dict[str, str]]:
    export_csv(TABLES["features"], TABLES["contexts"], path, dictionary_id=ID, **kwargs)
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def save(path: Path, rows: list[dict[str, str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path: Path, **kwargs: Any) -> list[dict[str, Any]]:
    return import_csv(path, **{"dictionary_id": ID, "features": range(16), **kwargs})


def test_what_is_written_can_be_read_by_people(tmp_path: Path) -> None:
    rows = exported(tmp_path / "labels.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert [int(r["feature"]) for r in rows] == [i for i in range(16) if i not in (4, 12)]  # the dead
    assert rows[2]["label"] == "unlabelled"
    assert "«" in rows[0]["contexts"]
    assert rows[0]["contexts"].count("\n") == 4
    assert rows[0]["evidence"] == "top 0; top 1; stratum 1.0; stratum 0.0; near_miss 0"
    assert {r["human_label"] + r["by"] for r in rows} == {""}
    assert [int(r["feature"]) for r in exported(tmp_path / "few.csv", only=[5, 1])] == [5, 1]
    with pytest.raises(ConfigError, match="no feature 99"):
        exported(tmp_path / "x.csv", only=[99])


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_labels_come_back_with_who_and_when(tmp_path: Path, delimiter: str, encoding: str) -> None:
    rows = exported(tmp_path / "labels.csv")
    rows[0] |= {"human_label": " a  cat; or, a dog ", "by": "Ana", "when": "2030-01-31", "note": "sure"}
    rows[1] |= {"human_label": "日本", "by": "Bo"}
    back = read(save(tmp_path / "back.csv", rows, delimiter, encoding), when="2030-02-01T10:00:00Z")
    assert [(r["feature"], r["label"], r["model"], r["made"]) for r in back] == [
        (0, "a cat; or, a dog", "Ana", "2030-01-31"),
        (1, "日本", "Bo", "2030-02-01T10:00:00Z"),
    ]
    assert json.loads(back[0]["evidence"]) == {"windows": rows[0]["evidence"], "note": "sure", "dictionary": ID}
    table = pa.Table.from_pylist(back, schema=LABELS)
    assert set(table["source"].to_pylist()) == {"human"}
    assert table["passed"].null_count == 2


def test_an_untouched_file_brings_no_labels(tmp_path: Path) -> None:
    exported(tmp_path / "labels.csv")
    assert read(tmp_path / "labels.csv") == []


def test_no_cell_is_a_formula_and_all_come_back(tmp_path: Path) -> None:
    features = TABLES["features"].to_pylist()
    nasty = ["=1+1", "+x", "-x", "@x", "'=x", "''@x", "'quoted'", "\tx"]
    for row, label in zip(features, nasty, strict=False):
        row["label"] = label
    export_csv(
        pa.Table.from_pylist(features, schema=TABLES["features"].schema),
        TABLES["contexts"],
        tmp_path / "labels.csv",
        dictionary_id=ID,
        only=range(len(nasty)),
    )
    with (tmp_path / "labels.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert not [cell for row in rows for cell in row.values() if cell[:1] in tuple("=+-@\t\r")]
    for row in rows:
        row |= {"human_label": row["label"], "by": "Ana"}
    back = read(save(tmp_path / "back.csv", rows))
    assert [r["label"] for r in back] == [label.strip() for label in nasty]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"feature": "99"}, r"line 7, column 'feature': the dictionary has no feature 99"),
        ({"feature": "0"}, r"line 7, column 'feature': 0 stands in line 2 already"),
        ({"feature": "x"}, r"line 7, column 'feature': 'x' is no feature number"),
        ({"dictionary": "cd" * 32}, r"line 7, column 'dictionary': 'cdcdcdcdcdcd'.*'abababababab'"),
        ({"by": ""}, r"line 7, column 'by': empty"),
        ({"when": "yesterday"}, r"line 7, column 'when': 'yesterday' is no ISO 8601 time"),
        ({"human_label": "x" * 201}, r"line 7, column 'human_label': 201 characters"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, change: dict[str, str], says: str) -> None:
    rows = exported(tmp_path / "labels.csv", only=[0, 1])
    rows[1] |= {"human_label": "a cat", "by": "Ana", **change}  # the first row's windows take lines 2 to 6
    with pytest.raises(ConfigError, match=says):
        read(save(tmp_path / "back.csv", rows))


def test_files_that_are_something_else_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    rows = exported(path, only=[0])
    for raw, says in [
        (b"", "no column 'feature'; it has nothing"),
        (b"feature,human_label\n1,x\n", "no column 'by'"),
        ("é".encode("latin-1"), "not in UTF-8"),
        (b"feature,human_label,by,dictionary\n1,x\n", "line 2: 2 cells, but the header has 4"),
    ]:
        path.write_bytes(raw)
        with pytest.raises(ConfigError, match=says):
            read(path)
    with pytest.raises(ConfigError, match=r"Did you mean 'labels\.csv'"):
        read(tmp_path / "label.csv")
    with pytest.raises(ConfigError, match="when is 'soon'"):
        read(save(path, rows), when="soon")
