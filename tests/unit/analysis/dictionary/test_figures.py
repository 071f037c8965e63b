"""Figures of a dictionary: over every tested feature, each with its number, and held against floors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from helpers.fake_dictionary import fake_manifest, fake_tables
from lightsae.analysis.dashboard.pages import write_dashboard
from lightsae.analysis.dictionary.figures import (
    NOT_ABOVE,
    above_chance,
    against,
    curves,
    f1_against,
    figures,
    headline,
    lower_scores,
    median_of,
)
from lightsae.analysis.dictionary.schema import FEATURES, LABELS
from lightsae.analysis.dictionary.writer import write_dictionary
from lightsae.production.registry.evidence import figures_of
from lightsae.production.registry.policy import read_policy


def tables_of(rows: list[tuple[str, float | None, float | None]]) -> dict[str, pa.Table]:
    """Return tables of features with a tier, and precision and recall of their rule; None: there is no rule."""
    features, labels = [], []
    for number, (tier, precision, recall) in enumerate(rows):
        shown = tier in ("high", "medium", "withheld")
        own = {"precision": precision, "recall": recall} if shown else {}
        features.append({"feature": number, "tier": tier, "fires": 100, "window_coherence": 0.5, **own})
        if precision is not None:
            scores = {"precision": precision, "recall": recall, "passed": shown}
            labels.append({"feature": number, "source": "rule", "test": "tokens", **scores})
    return {
        "features": pa.Table.from_pylist(features, schema=FEATURES),
        "labels": pa.Table.from_pylist(labels, schema=LABELS),
    }


FAILING = [("unlabelled", 0.3, 0.9)] * 8 + [("unlabelled", None, None)] * 8 + [("rare", 1.0, 1.0)] * 4
MIXED = [("high", 0.95, 0.8)] * 3 + FAILING[:16] + [("dead", None, None)]


def test_medians_are_over_every_tested_feature_and_say_how_many() -> None:
    tables = tables_of(MIXED)
    assert lower_scores(tables).tolist() == pytest.approx([0.8] * 3 + [0.3] * 8 + [0.0] * 8)
    ours = figures(tables)
    assert (ours["tested"], ours["lower_n"], ours["labelled"]) == (19, 19, 3)
    assert ours["lower_median"] == pytest.approx(0.3)
    assert ours["labelled_share"] == pytest.approx(3 / 19, abs=1e-4)
    # Wilson's interval of 3 of 19.
    assert (ours["labelled_share_low"], ours["labelled_share_high"]) == (0.0552, 0.3757)
    assert not any(key.startswith(("precision", "recall")) for key in ours)


@pytest.mark.parametrize(("n", "median"), [(9, None), (10, 0.5)])
def test_there_is_no_median_of_fewer_than_ten(n: int, median: float | None) -> None:
    assert median_of("x", np.r_[np.full(n, 0.5), np.nan]) == {"x_median": median, "x_n": n}


def test_a_label_by_a_judge_counts_by_its_own_test_and_a_persons_by_the_rule() -> None:
    tables = tables_of([("unlabelled", 0.3, 0.9)] * 2)
    rows = tables["features"].to_pylist()
    rows[0] |= {"label": "x", "label_source": "llm", "tier": "medium", "precision": 0.8, "recall": 0.9}
    rows[1] |= {"label": "y", "label_source": "human"}
    tables["features"] = pa.Table.from_pylist(rows, schema=FEATURES)
    assert lower_scores(tables).tolist() == pytest.approx([0.8, 0.3])


def floors_of(share: float, difference: float, low: float, high: float) -> dict[str, Any]:
    return {"random directions": {"share": share, "n": 500, "difference": difference, "low": low, "high": high}}


def test_a_floor_is_held_against_the_features_with_an_interval() -> None:
    # Newcombe 1998, table II, example (a): 56 of 70 against 48 of 80.
    ours, floor = ["high"] * 56 + ["unlabelled"] * 14, ["medium"] * 48 + ["unlabelled"] * 32 + ["dead", "rare"]
    compared = against(ours, floor)
    assert compared == {"n": 80, "share": 0.6, "difference": 0.2, "low": 0.0524, "high": 0.3339}
    assert above_chance({"a": compared}) is True
    assert above_chance({"a": compared, "b": against(floor, floor)}) is False
    assert above_chance({"a": against(ours, ["dead"])}) is None


@pytest.fixture
def at_chance() -> dict[str, Any]:
    manifest = fake_manifest(64)
    floors = floors_of(0.65, 0.0167, -0.12, 0.14)
    manifest["summary"] |= figures(fake_tables(64)) | {"floors": floors, "above_chance": False}
    return manifest


def test_a_dictionary_at_its_floor_has_no_headline(at_chance: dict[str, Any], tmp_path: Path) -> None:
    words = headline(at_chance["summary"])
    assert words.startswith(f"{NOT_ABOVE}: 66.7% of the features are labelled, 65.0% of random directions")
    assert "+1.7 points, 95% -12.0 to +14.0" in words
    write_dictionary(tmp_path / "d", fake_tables(64), at_chance)
    card = (tmp_path / "d" / "card.md").read_text(encoding="utf-8")
    assert f"**{NOT_ABOVE}: 66.7%" in card
    (tmp_path / "pages").mkdir()
    write_dashboard(tmp_path / "pages", fake_tables(64), at_chance)
    script = (tmp_path / "pages" / "assets" / "data" / "manifest.js").read_text(encoding="ascii")
    assert json.loads(f"[{script.removeprefix('lightsae.receive(').strip()[:-1]}]")[1]["headline"] == words


def test_a_dictionary_above_its_floors_says_so_with_intervals(at_chance: dict[str, Any], tmp_path: Path) -> None:
    at_chance["summary"] |= {"floors": floors_of(0.02, 0.6467, 0.5, 0.76), "above_chance": True}
    write_dictionary(tmp_path / "d", fake_tables(64), at_chance)
    card = (tmp_path / "d" / "card.md").read_text(encoding="utf-8")
    assert "**66.7% [52.5%, 78.3%] of the tested features labelled**" in card
    assert "| random directions | 0.02 | 500 | +0.647 (+0.500 to +0.760) | - |" in card
    assert "(n = 48)" in card


def test_the_summary_of_an_older_dictionary_has_a_headline_too() -> None:
    assert (
        headline({"labelled_share": 0.5, "floors": {"shuffled labels": 0.0}}) == "50.0% of the tested features labelled"
    )


def test_a_dictionary_all_of_whose_labels_fail_fails_a_policy(tmp_path: Path) -> None:
    folder = tmp_path / "version" / "dictionary"
    folder.mkdir(parents=True)
    policy = tmp_path / "policy.yaml"
    policy.write_text("labels: {min_share_labelled: 0.05, min_lower: 0.3, above_floors: true}\n")
    summary = figures(tables_of(FAILING)) | {"floors": floors_of(0.0, 0.0, -0.1, 0.1), "above_chance": False}
    (folder / "dictionary.json").write_text(json.dumps({"summary": summary}))
    lines = read_policy(policy).shortfalls(figures_of(folder.parent))
    assert [line.partition(":")[0] for line in lines] == [
        "labels.share_labelled",
        "labels.lower",
        "labels.above_floors",
    ]
    assert lines[1] == "labels.lower: found 0.15; needed at least 0.3"


def test_f1_is_the_mean_over_every_tested_feature() -> None:
    some = [("high", 1.0, 1.0), ("unlabelled", 0.5, 1.0), ("unlabelled", None, None), ("rare", 1.0, 1.0)]
    assert figures(tables_of(some))["f1_mean"] == pytest.approx((1 + 2 / 3 + 0) / 3, abs=1e-4)


def test_f1_is_held_against_a_floors_with_an_interval() -> None:
    draw = np.random.default_rng(0)
    ours, floor = draw.normal(0.6, 0.1, 200), draw.normal(0.5, 0.1, 100)
    apart = f1_against(ours, floor)
    assert apart["f1"] == pytest.approx(floor.mean(), abs=1e-4)
    assert 0.05 < apart["f1_low"] < apart["f1_difference"] < apart["f1_high"] < 0.15
    assert f1_against(ours, floor[:1])["f1_low"] is None


def test_a_share_above_a_floor_is_above_chance_only_if_f1_is_too() -> None:
    above = floors_of(0.1, 0.3, 0.2, 0.4)
    (name,) = above
    assert above_chance(above) is True
    assert above_chance({name: {**above[name], "f1_low": -0.01}}) is False
    assert above_chance({name: {**above[name], "f1_low": 0.01}}) is True
    assert above_chance({name: {**above[name], "low": -0.01, "f1_low": 0.01}}) is False


def test_the_curve_by_patterns_is_of_features_neurons_and_floors() -> None:
    curve, lower = {"1": 0.2, "3": 0.3, "8": 0.35, "64": 0.5}, {"1": 0.0, "3": 0.1, "8": 0.1, "64": 0.5}
    summary = {
        "labelled_by_patterns": curve,
        "neurons": {"kind": "raw neurons", "labelled_by_patterns": lower},
        "floors": {"random directions": {"by_patterns": lower}, "shuffled labels": {"share": 0.0}},
    }
    assert curves(summary) == {"features": curve, "raw neurons": lower, "random directions": lower}
    assert curves({"floors": {"random directions": 0.02}}) == {}


def test_the_card_shows_the_curve_and_says_of_what_rules_the_labels_are(tmp_path: Path) -> None:
    manifest = fake_manifest(16)
    manifest["summary"]["labelled_by_patterns"] = {"1": 0.21, "3": 0.32, "8": 0.43, "64": 0.54}
    write_dictionary(tmp_path / "new", fake_tables(16), manifest)
    card = (tmp_path / "new" / "card.md").read_text(encoding="utf-8")
    assert "| features | 0.21 | 0.32 | 0.43 | 0.54 |" in card
    assert "at most 3 patterns" in card
    manifest["labels"] = {"offline": {"gate": 0.7}}
    write_dictionary(tmp_path / "old", fake_tables(16), manifest)
    assert "of up to 64 patterns" in (tmp_path / "old" / "card.md").read_text(encoding="utf-8")
