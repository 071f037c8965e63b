import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.fake_dictionary import fake_manifest, fake_tables
from lightsae.analysis.dictionary.feature_dictionary import FeatureDictionary
from lightsae.analysis.dictionary.schema import TABLES
from lightsae.analysis.dictionary.writer import manifest_id, write_dictionary
from lightsae.errors import FormatError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_equal_inputs_give_equal_bytes_whatever_the_order_of_features(tmp_path: Path) -> None:
    tables, manifest = fake_tables(40), fake_manifest(40)
    first = write_dictionary(tmp_path / "a", tables, manifest)
    # Features in another order and in several chunks; keys of the manifest in another order; a tuple for a list.
    features = tables["features"].take(np.random.default_rng(0).permutation(40))
    tables["features"] = pa.concat_tables([features.slice(0, 7), features.slice(7)])
    manifest = dict(reversed(manifest.items()))
    manifest["histogram_edges"] = tuple(manifest["histogram_edges"])
    assert write_dictionary(tmp_path / "b", tables, manifest) == first
    files = contents(tmp_path / "b")
    assert {n: b for n, b in files.items() if n != "dictionary.json"} == {
        n: b for n, b in contents(tmp_path / "a").items() if n != "dictionary.json"
    }
    assert set(files) == {"dictionary.json", "card.md", *(f"{name}.parquet" for name in TABLES)}


@pytest.mark.parametrize("what", ["label", "sae", "seed"])
def test_whatever_changes_changes_the_id(tmp_path: Path, what: str) -> None:
    tables, manifest = fake_tables(16), fake_manifest(16)
    first = write_dictionary(tmp_path / "a", tables, manifest)
    if what == "label":
        rows = tables["features"].to_pylist()
        rows[0]["label"] = "another"
        tables["features"] = pa.Table.from_pylist(rows, schema=TABLES["features"])
    elif what == "sae":
        manifest["sae"]["sha256"] = "5b" * 32
    else:
        manifest["seeds"]["scores"] = 2
    assert write_dictionary(tmp_path / "a", tables, manifest) != first
    assert FeatureDictionary.open(tmp_path / "a").id != first


def test_extra_files_come_along_but_are_not_part_of_the_id(tmp_path: Path) -> None:
    tables, manifest = fake_tables(16), fake_manifest(16)

    def extra(staged: Path) -> None:
        # It may already be opened.
        assert len(FeatureDictionary.open(staged)) == 16
        (staged / "index.html").write_text("hello")
        write_dictionary(staged / "neurons", fake_tables(8), fake_manifest(8))

    plain = write_dictionary(tmp_path / "a", tables, manifest)
    assert write_dictionary(tmp_path / "b", tables, manifest, extra) == plain
    assert len(FeatureDictionary.open(tmp_path / "b" / "neurons")) == 8
    # Written again without them, they are gone.
    write_dictionary(tmp_path / "b", tables, manifest)
    assert not (tmp_path / "b" / "index.html").exists()


def test_a_failing_extra_leaves_the_earlier_dictionary(tmp_path: Path) -> None:
    write_dictionary(tmp_path / "a", fake_tables(16), fake_manifest(16))
    before = contents(tmp_path / "a")

    def fail(staged: Path) -> None:
        raise RuntimeError("no picture today")

    with pytest.raises(RuntimeError, match="no picture"):
        write_dictionary(tmp_path / "a", fake_tables(24), fake_manifest(24), fail)
    assert contents(tmp_path / "a") == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_nothing_but_an_earlier_dictionary_is_replaced(tmp_path: Path) -> None:
    tables, manifest = fake_tables(16), fake_manifest(16)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FormatError, match=r"already holds something else \('chapter1.tex'\)"):
        write_dictionary(tmp_path / "thesis", tables, manifest)
    with pytest.raises(FormatError, match="is a file"):
        write_dictionary(tmp_path / "file", tables, manifest)
    write_dictionary(tmp_path / "a", tables, manifest)
    (tmp_path / "a" / "my_labels.csv").write_text("feature,label")
    with pytest.raises(FormatError, match=r"my_labels.csv"):
        write_dictionary(tmp_path / "a", tables, manifest)
    assert (tmp_path / "a" / "my_labels.csv").exists()
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_tables_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tables, manifest = fake_tables(16), fake_manifest(16)

    def refuse(match: str, **changed: pa.Table) -> None:
        with pytest.raises(FormatError, match=match):
            write_dictionary(tmp_path / "a", tables | changed, manifest)

    features = tables["features"]
    refuse("lacks 'tier'", features=features.drop_columns(["tier"]))
    refuse("unknown column 'zzz'", features=features.append_column("zzz", features["feature"]))
    refuse("two rows of the same feature", features=pa.concat_tables([features, features.slice(0, 1)]))
    refuse("has feature 15, which 'features' does not have", features=features.slice(0, 15))
    words = features.set_column(features.column_names.index("fires"), "fires", features["tier"])
    refuse("'features' does not fit its schema", features=words)
    rows = tables["contexts"].to_pylist()
    rows[3]["peak"] = 99
    refuse("texts, values and peak disagree", contexts=pa.Table.from_pylist(rows, schema=TABLES["contexts"]))
    with pytest.raises(FormatError, match="'edges' is missing"):
        write_dictionary(tmp_path / "a", {k: v for k, v in tables.items() if k != "edges"}, manifest)
    for change, match in (
        ({"summary": {"fve": float("nan")}}, "not plain JSON"),
        ({"sae": {"sha256": None}}, "sae.sha256 is None"),
    ):
        with pytest.raises(FormatError, match=match):
            write_dictionary(tmp_path / "a", tables, manifest | change)
    del manifest["corpus"]
    with pytest.raises(FormatError, match="lacks 'corpus'"):
        write_dictionary(tmp_path / "a", tables, manifest)
    assert not (tmp_path / "a").exists()


def test_the_layout_on_disk(folder: Path) -> None:
    manifest = json.loads((folder / "dictionary.json").read_text(encoding="utf-8"))
    assert manifest["id"] == manifest_id(manifest)
    assert manifest["schema_version"] == 2
    file = pq.ParquetFile(folder / "contexts.parquet")
    assert file.schema_arrow.equals(TABLES["contexts"])
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    features = file.read(columns=["feature"])["feature"].to_numpy()
    assert (np.diff(features) >= 0).all()


def test_an_empty_dictionary_can_be_written(tmp_path: Path) -> None:
    """No feature fired: the tables have rows of dead features alone."""
    tables = fake_tables(8)
    dead = [r for r in tables["features"].to_pylist() if r["tier"] == "dead"]
    empty = {name: TABLES[name].empty_table() for name in ("contexts", "edges", "labels")}
    write_dictionary(
        tmp_path / "a", {"features": pa.Table.from_pylist(dead, schema=TABLES["features"]), **empty}, fake_manifest(1)
    )
    dictionary = FeatureDictionary.open(tmp_path / "a")
    assert len(dictionary) == 1
    assert dictionary.search("cat").num_rows == 0
