import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.fake_dictionary import SITE, fake_manifest, fake_tables
from lightsae.analysis.dictionary import neuronpedia
from lightsae.analysis.dictionary.export_json import export_case_study
from lightsae.analysis.dictionary.feature_dictionary import FeatureDictionary
from lightsae.analysis.dictionary.figures import figures
from lightsae.analysis.dictionary.neuronpedia import Release, export_neuronpedia
from lightsae.analysis.dictionary.writer import write_dictionary
from lightsae.errors import ConfigError, FormatError

RELEASE = Release(
    "gpt2-small", "res-tiny", "tiny-release", "Tiny <b>SAEs</b>", "A. Person", created=datetime(2026, 1, 2, tzinfo=UTC)
)


def lines(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.decode().split("\n") if line]


def test_case_study(dictionary: FeatureDictionary, tmp_path: Path) -> None:
    export_case_study(dictionary, tmp_path / "top.json", features=5, contexts=2, before=5, after=3)
    told = json.loads((tmp_path / "top.json").read_text(encoding="utf-8"))
    # `max` rises with the index; 60 is dead.
    assert list(told) == ["63", "62", "61", "59", "58"]
    for feature, windows in told.items():
        ours = dictionary.feature(int(feature)).contexts[:2]
        assert [w["score"] for w in windows] == [c["score"] for c in ours]
        for window, context in zip(windows, ours, strict=True):
            assert set(window) == {"score", "target", "context", "start"}
            assert window["context"][window["start"] :].startswith(window["target"])
            peak = context["peak"]
            assert window["context"] == "".join(context["texts"][peak - 5 : peak + 4])
    with pytest.raises(ConfigError, match="before is -1"):
        export_case_study(dictionary, tmp_path / "top.json", before=-1)


def test_neuronpedia_layout(dictionary: FeatureDictionary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neuronpedia, "BATCH", 40)
    decoder = torch.randn(64, 16)
    inside = export_neuronpedia(dictionary, tmp_path / "np", RELEASE, decoder=decoder)
    assert inside == tmp_path / "np" / "gpt2-small" / "2-res-tiny"
    assert sorted(str(p.relative_to(inside)) for p in inside.rglob("*") if p.is_file()) == sorted(
        [f"{part}/batch-{n}.jsonl.gz" for part in ("features", "activations", "explanations") for n in (0, 1)]
        + [f"{part}.jsonl" for part in ("release", "model", "sourceset", "source")]
    )
    assert lines(inside / "source.jsonl")[0]["id"] == "2-res-tiny"
    assert lines(inside / "sourceset.jsonl")[0]["releaseName"] == lines(inside / "release.jsonl")[0]["name"]
    rows = [row for n in (0, 1) for row in lines(inside / "features" / f"batch-{n}.jsonl.gz")]
    assert [row["index"] for row in rows] == [str(i) for i in range(64)]
    row, own = rows[41], dictionary.feature(41).row
    assert (row["modelId"], row["layer"], row["hookName"]) == ("gpt2-small", "2-res-tiny", "blocks.2.hook_resid_post")
    assert row["frac_nonzero"] == own["frequency"]
    assert row["pos_str"] == [t["text"] for t in own["promoted"]]
    assert len(row["freq_hist_data_bar_heights"]) == len(row["freq_hist_data_bar_values"]) == 9
    assert row["vector"] == pytest.approx(decoder[41].tolist(), abs=1e-5)
    windows = [a for n in (0, 1) for a in lines(inside / "activations" / f"batch-{n}.jsonl.gz")]
    assert len({w["id"] for w in windows}) == len(windows) == dictionary.contexts().num_rows * 4 // 5
    for window in windows:
        assert window["maxValue"] == max(window["values"]) == window["values"][window["maxValueTokenIndex"]]
        assert len(window["tokens"]) == len(window["values"])
        assert window["binMin"] == -1 or 0 <= window["binContains"] <= 1
    labelled = [row["description"] for n in (0, 1) for row in lines(inside / "explanations" / f"batch-{n}.jsonl.gz")]
    assert labelled == [label for label in dictionary.features()["label"].to_pylist() if label is not None]


def test_neuronpedia_takes_the_edges_that_interpret_writes(tmp_path: Path) -> None:
    """Those between the bins alone: one fewer than there are bins."""
    manifest = fake_manifest(16)
    manifest["histogram_edges"] = manifest["histogram_edges"][1:-1]
    write_dictionary(tmp_path / "d", fake_tables(16), manifest)
    inside = export_neuronpedia(FeatureDictionary.open(tmp_path / "d"), tmp_path / "np", RELEASE)
    for row in lines(inside / "features" / "batch-0.jsonl.gz"):
        if row["freq_hist_data_bar_heights"]:
            assert len(row["freq_hist_data_bar_heights"]) == len(row["freq_hist_data_bar_values"]) == 9
    shares = [window["binContains"] for window in lines(inside / "activations" / "batch-0.jsonl.gz")]
    assert all(share == -1 or 0 <= share <= 1 for share in shares)


def test_neuronpedia_again_gives_the_same_bytes_and_spares_what_is_not_its_own(
    dictionary: FeatureDictionary, tmp_path: Path
) -> None:
    inside = export_neuronpedia(dictionary, tmp_path / "np", RELEASE)
    before = {p: p.read_bytes() for p in inside.rglob("*") if p.is_file()}
    export_neuronpedia(dictionary, tmp_path / "np", RELEASE)
    assert {p: p.read_bytes() for p in inside.rglob("*") if p.is_file()} == before
    (tmp_path / "np" / "thesis.tex").write_text("x")
    with pytest.raises(FormatError, match=r"already holds 'thesis.tex'"):
        export_neuronpedia(dictionary, tmp_path / "np", RELEASE)


def test_neuronpedia_refuses_what_it_cannot_show(dictionary: FeatureDictionary, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model of the release is '../up'"):
        export_neuronpedia(dictionary, tmp_path / "np", Release("../up", "a", "b", "c", "d"))
    with pytest.raises(ConfigError, match="decoder has 3 rows"):
        export_neuronpedia(dictionary, tmp_path / "np", RELEASE, decoder=torch.zeros(3, 16))
    manifest = fake_manifest(8)
    manifest["sae"]["read"] = [SITE, SITE | {"site": "resid_post.3"}]
    write_dictionary(tmp_path / "d", fake_tables(8), manifest)
    with pytest.raises(FormatError, match=r"belongs to resid_post.2, resid_post.3"):
        export_neuronpedia(FeatureDictionary.open(tmp_path / "d"), tmp_path / "np", RELEASE)
    assert not (tmp_path / "np").exists()


def test_the_card_tells_the_figures_of_both_populations_and_stays_harmless(tmp_path: Path) -> None:
    tables, manifest = fake_tables(64), fake_manifest(64)
    ours = figures(tables)
    assert (ours["features"], ours["alive"], ours["labelled"], ours["tier_rare"]) == (64, 56, 32, 8)
    assert ours["labelled_share"] == pytest.approx(32 / 48, abs=1e-4)
    manifest["summary"]["neurons"] = figures(fake_tables(16)) | {"labelled": 1234}
    manifest["corpus"]["name"] = "<script>alert(1)</script>|`x` [a](javascript:b)"
    name = write_dictionary(tmp_path / "d", tables, manifest)
    card = (tmp_path / "d" / "card.md").read_text(encoding="utf-8")
    assert "| labelled | 32 | 1234 |" in card
    assert "shuffled\\_labels | 0.03" in card
    assert name in card
    assert "<script" not in card
    assert "[a](" not in card.replace("\\[a](", "")
