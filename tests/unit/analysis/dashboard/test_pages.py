import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from helpers.fake_dictionary import HISTOGRAM_EDGES, VOCABULARY, fake_manifest, fake_tables
from lightsae.analysis.dashboard import Colouring, Map, write_dashboard
from lightsae.analysis.dashboard.data import rounded, write_script

Received = Callable[[Path], Any]


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    return fake_tables(230)


@pytest.fixture(scope="module")
def folder(tables: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dashboard")
    points = np.arange(6, dtype=np.float32).reshape(3, 2)
    colours = [Colouring("class", ["a", "</script>", "a"]), Colouring("size", np.array([1.0, np.nan, 3.0]))]
    maps = [Map("tokens", "PCA", points, colours, texts=["x", "\u2028", "<b>"], group="both")]
    write_dashboard(made, tables, fake_manifest(230), neurons=fake_tables(16), maps=maps)
    return made


def test_a_folder_holds_the_pages_and_all_that_they_load(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["assets", "index.html"]
    page = (folder / "index.html").read_text()
    for script in [part.split('"')[0] for part in page.split('src="')[1:]]:
        assert (folder / script).is_file(), script
    assert "http:" not in page
    assert "https:" not in page
    assert (folder / "assets" / "plotly.min.js").stat().st_size > 1e6


def test_columns_of_the_list_are_those_of_the_table(
    folder: Path, tables: dict[str, pa.Table], received: Received
) -> None:
    columns, features = received(folder / "assets/data/features.js"), tables["features"].to_pylist()
    assert columns["n"] == 230
    assert columns["feature"] is None
    assert columns["label"] == [row["label"] for row in features]
    tiers = [columns["tier"]["names"][code] for code in columns["tier"]["codes"]]
    assert tiers == [row["tier"] for row in features]
    assert columns["frequency"] == [rounded(row["frequency"]) for row in features]
    texts = columns["tokens"]["texts"]
    told = [[texts[i] for i in of] for of in columns["tokens"]["of"]]
    assert told == [[t["text"] for t in row["tokens_on"] or []] for row in features]


def test_chunks_give_every_window_back(folder: Path, tables: dict[str, pa.Table], received: Received) -> None:
    chunks = [received(folder / f"assets/data/features/{i}.js") for i in range(3)]
    assert [len(chunk["features"]) for chunk in chunks] == [100, 100, 30]
    contexts = tables["contexts"].to_pylist()
    for feature in (0, 101, 229):
        chunk = chunks[feature // 100]
        row = chunk["features"][feature % 100]
        assert row["feature"] == feature
        mine = [c for c in contexts if c["feature"] == feature]
        told = row["contexts"]
        assert [w[0] for w in told["top"]] == [rounded(c["score"]) for c in mine if c["kind"] == "top"]
        assert [number for number, _ in told["strata"]] == [1, 0]
        for window, context in zip(told["top"], mine, strict=False):
            assert [chunk["tokens"][i] for i in window[5]] == [[t, VOCABULARY[t]] for t in context["tokens"]]
            dense = [0.0] * len(context["tokens"])
            for place, value in zip(window[6][::2], window[6][1::2], strict=True):
                dense[place] = value
            assert dense == [rounded(v) for v in context["values"]]
            assert window[4] == context["peak"]


def test_rows_in_any_order_and_numbers_with_gaps_are_told_right(
    tables: dict[str, pa.Table], received: Received, tmp_path: Path
) -> None:
    keep = (5, 130, 229)
    key = {"features": "feature", "contexts": "feature", "edges": "source", "labels": "feature"}
    some = {
        name: pa.Table.from_pylist([r for r in table.to_pylist() if r[key[name]] in keep][::-1], schema=table.schema)
        for name, table in tables.items()
    }
    write_dashboard(tmp_path, some, fake_manifest(3))
    assert received(tmp_path / "assets/data/features.js")["feature"] == [5, 130, 229]
    rows = received(tmp_path / "assets/data/features/0.js")["features"]
    assert [row["feature"] for row in rows] == [5, 130, 229]
    for row in rows:
        mine = [c for c in tables["contexts"].to_pylist() if c["feature"] == row["feature"] and c["kind"] == "top"]
        assert [w[1] for w in row["contexts"].get("top", [])] == [c["document"] for c in mine]
    assert not (tmp_path / "assets/data/neurons.js").exists()


def test_words_of_contexts_lead_to_their_features(
    folder: Path, tables: dict[str, pa.Table], received: Received
) -> None:
    index = received(folder / "assets/data/features-words.js")
    places = dict(zip(index["words"], index["rows"], strict=True))
    for word in ("naïve", "script", "cat", "日本"):
        found = np.cumsum([int(step, 36) for step in places[word].split()]).tolist()
        expected = {
            c["feature"]
            for c in tables["contexts"].to_pylist()
            if c["kind"] != "near_miss" and word in re.findall(r"\w+", "".join(c["texts"]).lower())
        }
        assert found == sorted(expected), word
    assert index["words"] == sorted(index["words"])


def test_maps_keep_points_and_lose_what_is_no_number(folder: Path, received: Received) -> None:
    told = received(folder / "assets/data/map-0.js")
    assert (told["x"], told["y"]) == ([0, 2, 4], [1, 3, 5])
    assert told["colours"][1]["values"] == [1, None, 3]
    assert received(folder / "assets/data/manifest.js")["maps"] == [{"name": "tokens", "group": "both", "points": 3}]


def test_manifest_is_told_whole(folder: Path, received: Received) -> None:
    told = received(folder / "assets/data/manifest.js")
    assert told["manifest"]["histogram_edges"] == HISTOGRAM_EDGES
    assert told["manifest"]["corpus"]["name"] == "made up <b>corpus</b>"
    assert told["neurons"]


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--", "]]>", "\u2028\u2029", "\ud800", "日本", "&lt;"]
)
def test_no_text_can_end_a_script(text: str, received: Received, tmp_path: Path) -> None:
    write_script(tmp_path / "one.js", "one", {text: [text]})
    written = (tmp_path / "one.js").read_bytes()
    assert written.isascii()
    assert not set(b"<>&") & set(written)
    assert received(tmp_path / "one.js") == {text: [text]}


def test_empty_tables_make_pages_too(tables: dict[str, pa.Table], received: Received, tmp_path: Path) -> None:
    write_dashboard(tmp_path, {name: table.slice(0, 0) for name, table in tables.items()}, fake_manifest(0))
    assert received(tmp_path / "assets/data/features.js")["n"] == 0


@pytest.mark.parametrize(
    ("value", "told"), [(0.123456, 0.1235), (1234567.0, 1235000), (float("nan"), None), (None, None)]
)
def test_numbers_are_short(value: float | None, told: float | None) -> None:
    assert rounded(value) == told
