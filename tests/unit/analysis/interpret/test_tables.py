"""The tables of a dictionary, against the planted firings that they tell of."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.planted_firings import Planted, planted
from lightsae.analysis.contexts.stage import SavedPass, gather_contexts
from lightsae.analysis.contexts.statistics import ContextSettings, ContextStatistics
from lightsae.analysis.dictionary.figures import above_chance
from lightsae.analysis.dictionary.schema import TABLES
from lightsae.analysis.effects.ablation import AblationEffects
from lightsae.analysis.effects.coherence import Coherence
from lightsae.analysis.effects.directions import Neighbours
from lightsae.analysis.effects.logits import LogitEffects
from lightsae.analysis.effects.stage import Effects
from lightsae.analysis.interpret.floors import held_against
from lightsae.analysis.interpret.tables import COFIRE_TOLD, IN_STRATUM, STRATA, Tables, make_tables
from lightsae.analysis.labels.rules import Rule
from lightsae.analysis.labels.scoring import Scores
from lightsae.analysis.labels.stage import OfflineLabels
from lightsae.analysis.reading.firing_lists import FiringLists
from lightsae.analysis.reading.firings import AFTER, BEFORE
from lightsae.progress import NullProgress

F = 6  # the last one is dead
VOCABULARY = [f"<{i}>" for i in range(11)]
SETTINGS = ContextSettings(top=5, sampled=14, near_misses=3, seed=1)


@pytest.fixture(scope="module")
def text() -> Planted:
    return planted(rows=40, features=F)


@pytest.fixture(scope="module")
def found(text: Planted, tmp_path_factory: pytest.TempPathFactory) -> ContextStatistics:
    statistics = ContextStatistics(text.source, text.vocabulary, text.rows.tokens.size, SETTINGS, together=True)
    saved = SavedPass(tmp_path_factory.mktemp("pass") / "d", {})
    gather_contexts({"features": statistics}, text.reader(3), text.rows, saved, NullProgress())
    return statistics


def labels() -> OfflineLabels:
    """Of each tier one, and a feature without a rule."""
    nothing = np.zeros(0, np.int32)
    return OfflineLabels(
        words=["`a`", "`b`; `c`", "`d`", "", "`e`", ""],
        rules=[
            Rule((("token", 1),), (0.9,)),
            Rule((("token", 2), ("after", 30)), (0.5, 0.123456789)),
            Rule((("token", 3),), (0.4,)),
            Rule((), ()),
            Rule((("token", 4),), (1.0,)),
            Rule((), ()),
        ],
        scores=[
            Scores(90, 5, 10, 1000),
            Scores(8, 2, 3, 1000),
            Scores(5, 50, 50, 1000),
            Scores(0, 0, 40, 1000),
            Scores(3, 0, 0, 1000),
            Scores(0, 0, 0, 1000),
        ],
        tiers=["high", "medium", "unlabelled", "unlabelled", "rare", "dead"],
        detectors=[
            Rule((("token", 1), ("token", 2)), (0.9, 0.05)),
            *[Rule((("token", 2),), (0.5,))] * 2,
            Rule((), ()),
            *[Rule((("token", 4),), (1.0,))] * 2,
        ],
        detector_words=["`a`, `b`", "`b`", "`b`", "", "`e`", "`e`"],
        detector_scores=[Scores(95, 5, 5, 1000), *[Scores(20, 0, 5, 1000)] * 4, Scores(0, 0, 0, 1000)],
        detected=[True, True, True, False, False, False],
        shuffled=[False, False],
        curve={1: 0.2, 3: 0.4, 8: 0.5, 64: 0.6},
        scored=FiringLists(nothing, np.zeros(F + 1, np.int64), np.zeros(0, np.bool_), 0),
    )


def some_effects(**more: Any) -> Effects:
    coherence = np.array([0.1, 0.2, np.nan, 0.4, 0.5, np.nan], np.float32)
    return Effects(Coherence(coherence, coherence), Coherence(coherence + 1, coherence), **more)


@pytest.fixture(scope="module")
def tables(found: ContextStatistics) -> Tables:
    return make_tables(found, some_effects(), labels(), VOCABULARY)


def test_tables_have_the_schema(tables: Tables) -> None:
    assert list(tables) == list(TABLES)
    for name, table in tables.items():
        assert table.schema.equals(TABLES[name]), name


def test_counts_and_sizes_are_those_of_the_firings(tables: Tables, text: Planted) -> None:
    table = tables["features"].to_pydict()
    fired = text.fired
    fires = (fired > 0).sum(0)
    assert table["feature"] == list(range(F))
    assert table["fires"] == fires.tolist()
    np.testing.assert_allclose(table["frequency"], fires / text.counted.sum())
    np.testing.assert_allclose(table["l0_share"], fires / fires.sum(), rtol=1e-6)
    np.testing.assert_allclose(table["max"], fired.max(0))
    means = [column[column > 0].mean() if column.any() else 0 for column in fired.T]
    np.testing.assert_allclose(table["mean"], means, rtol=1e-5)
    assert [sum(bins) for bins in table["histogram"]] == fires.tolist()
    documents = text.rows.documents.ravel()
    assert table["documents"] == [len(set(documents[column > 0].tolist())) for column in fired.T]


@pytest.mark.parametrize(("name", "shift"), [("tokens_on", 0), ("tokens_before", -1), ("tokens_after", 1)])
def test_tokens_are_counted(name: str, shift: int, tables: Tables, text: Planted) -> None:
    fired = text.fired.reshape(len(text.rows), text.context, F)
    for feature, told in enumerate(tables["features"][name].to_pylist()):
        places = zip(*np.nonzero(fired[:, :, feature]), strict=True)
        counts = Counter(
            int(text.rows.tokens[row, column + shift]) for row, column in places if 0 <= column + shift < text.context
        )
        assert [entry["count"] for entry in told] == sorted(counts.values(), reverse=True)[:10]
        for entry in told:
            assert entry["count"] == counts[entry["token"]]
            assert entry["text"] == VOCABULARY[entry["token"]]
            assert entry["share"] == pytest.approx(entry["count"] / (fired[:, :, feature] > 0).sum())


def test_only_what_passed_is_shown_and_the_rest_is_on_record(tables: Tables) -> None:
    shown = tables["features"].to_pydict()
    assert shown["label"] == ["`a`", "`b`; `c`", None, None, None, None]
    assert shown["label_source"] == ["rule", "rule", None, None, None, None]
    assert shown["precision"] == pytest.approx([90 / 95, 0.8, None, None, None, None])
    assert shown["recall"] == pytest.approx([0.9, 8 / 11, None, None, None, None])
    assert shown["tier"] == ["high", "medium", "unlabelled", "unlabelled", "rare", "dead"]
    rows = [row for row in tables["labels"].to_pylist() if row["source"] == "rule"]
    assert [(row["feature"], row["label"], row["passed"]) for row in rows] == [
        (0, "`a`", True),
        (1, "`b`; `c`", True),
        (2, "`d`", False),
        (4, "`e`", False),
    ]
    assert {(row["source"], row["test"], row["negatives"]) for row in rows} == {("rule", "tokens", "natural")}
    assert json.loads(rows[1]["rule"]) == {"patterns": [["token", 2], ["after", 30]], "shares": [0.5, 0.12346]}
    assert (rows[0]["positives_tested"], rows[0]["negatives_tested"]) == (100, 1005)
    assert rows[0]["precision_low"] < rows[0]["precision"] < rows[0]["precision_high"]


def test_detectors_stand_beside_the_labels_under_their_own_name(tables: Tables) -> None:
    shown = tables["features"].to_pydict()
    assert shown["label_patterns"] == [1, 2, None, None, None, None]
    assert shown["detector_patterns"] == [2, 1, 1, None, 1, 1]
    assert shown["detector_precision"] == pytest.approx([0.95, 1, 1, None, 1, None])
    assert shown["detector_recall"] == pytest.approx([0.95, 0.8, 0.8, None, 0.8, None])
    assert shown["detector_passed"] == [True, True, True, None, False, False]
    rows = [row for row in tables["labels"].to_pylist() if row["source"] == "detector"]
    assert [(row["feature"], row["label"], row["patterns"], row["passed"]) for row in rows] == [
        (0, "`a`, `b`", 2, True),
        (1, "`b`", 1, True),
        (2, "`b`", 1, True),
        (4, "`e`", 1, False),
        (5, "`e`", 1, False),
    ]


def test_windows_are_pieces_of_the_text(tables: Tables, text: Planted) -> None:
    rows = tables["contexts"].to_pylist()
    assert Counter(row["kind"] for row in rows).keys() == {"top", "stratum", "near_miss"}
    for row in rows:
        begin = max(0, row["position"] - BEFORE)
        part = slice(begin, row["position"] + AFTER + 1)
        tokens = text.rows.tokens[row["row"], part].tolist()
        activations = text.fired.reshape(len(text.rows), text.context, F)[row["row"], part, row["feature"]]
        assert row["tokens"] == tokens
        assert row["texts"] == [VOCABULARY[token] for token in tokens]
        np.testing.assert_array_equal(np.array(row["values"], np.float32), activations)
        assert row["peak"] == row["position"] - begin
        assert row["document"] == text.rows.documents[row["row"], row["position"]]
        peak = row["values"][row["peak"]]
        if row["kind"] == "near_miss":
            assert peak == 0
            assert row["score"] < 0  # planted features fire above 0: that is how near it came
        else:
            assert row["score"] == peak > 0


def test_the_strongest_windows_come_first(tables: Tables, text: Planted) -> None:
    rows = tables["contexts"].to_pylist()
    by_row = text.fired.reshape(len(text.rows), text.context, F).max(1)
    for feature in range(F - 1):
        top = [row for row in rows if row["feature"] == feature and row["kind"] == "top"]
        assert [row["rank"] for row in top] == list(range(5))
        assert [row["stratum"] for row in top] == [None] * 5
        assert top[0]["score"] == by_row[:, feature].max()
        assert [row["score"] for row in top] == sorted((row["score"] for row in top), reverse=True)
    assert not [row for row in rows if row["feature"] == F - 1], "a dead feature has no windows"


def test_strata_part_a_sample_by_activation(tables: Tables) -> None:
    rows = [row for row in tables["contexts"].to_pylist() if row["kind"] == "stratum"]
    for feature in range(F - 1):
        strata = [[r for r in rows if r["feature"] == feature and r["stratum"] == s] for s in range(STRATA)]
        # 14 windows in four: 4, 3, 4, 3.
        assert [len(stratum) for stratum in strata] == [4, 3, 4, 3]
        for stratum in strata:
            assert [row["rank"] for row in stratum] == list(range(len(stratum)))
            assert len(stratum) <= IN_STRATUM
        for weaker, stronger in itertools.pairwise(strata):
            assert max(row["score"] for row in weaker) <= min(row["score"] for row in stronger)


def test_cofiring_edges_count_tokens_together(tables: Tables, text: Planted) -> None:
    edges = tables["edges"].to_pylist()
    assert {edge["kind"] for edge in edges} == {"cofire"}
    fires = text.fired > 0
    for edge in edges:
        a, b = fires[text.counted.ravel()][:, [edge["source"], edge["target"]]].T
        assert edge["count"] == (a & b).sum()
        assert edge["weight"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)
        assert edge["source"] != edge["target"]
    assert max(Counter(edge["source"] for edge in edges).values()) <= COFIRE_TOLD
    assert not {F - 1} & {edge["source"] for edge in edges}


def test_what_was_not_asked_for_is_null(tables: Tables) -> None:
    table = tables["features"]
    optional = ("promoted", "suppressed", "logit_kurtosis", "s_in", "s_out", "ablation_kl", "nearest", "neurons")
    for name in optional:
        assert table[name].null_count == F, name
    # What could not be measured is null too: tables have no NaN.
    assert table["window_coherence"].to_pylist() == pytest.approx([0.1, 0.2, None, 0.4, 0.5, None])
    assert table["document_coherence"].to_pylist() == pytest.approx([1.1, 1.2, None, 1.4, 1.5, None])


def test_effects_come_to_their_columns(found: ContextStatistics) -> None:
    numbers = np.arange(F, dtype=np.float32)
    gaps = np.where(numbers == 3, np.nan, numbers).astype(np.float32)
    tokens = np.array([[i, i + 1] for i in range(F)], np.int32)
    sizes = np.stack([numbers + 2, numbers + 1], 1)
    near = Neighbours(np.array([[(i + 1) % F] for i in range(F)], np.int32), (numbers / np.float32(10))[:, None])
    effects = some_effects(
        logits=LogitEffects(tokens, sizes, tokens[:, ::-1].copy(), -sizes, gaps, numbers),
        s_in=gaps,
        s_out=numbers,
        ablation=AblationEffects(gaps, -gaps, np.arange(F, dtype=np.int32)),
        nearest=near,
        neurons=near,
    )
    made = make_tables(found, effects, labels(), VOCABULARY)
    rows = made["features"].to_pylist()
    assert rows[2]["promoted"] == [
        {"token": 2, "text": "<2>", "logit": 4.0},
        {"token": 3, "text": "<3>", "logit": 3.0},
    ]
    assert [entry["token"] for entry in rows[2]["suppressed"]] == [3, 2]
    assert [entry["logit"] for entry in rows[2]["suppressed"]] == [-4.0, -3.0]
    assert rows[2]["nearest"] == rows[2]["neurons"] == [{"feature": 3, "cosine": pytest.approx(0.2)}]
    columns = ("s_in", "s_out", "logit_kurtosis", "logit_concentration", "ablation_kl", "ablation_ce")
    assert [rows[3][c] for c in columns] == [None, 3.0, None, 3.0, None, None]
    assert [rows[4][c] for c in columns] == [4.0, 4.0, 4.0, 4.0, 4.0, -4.0]
    assert rows[4]["ablation_tokens"] == 4
    cosines = [edge for edge in made["edges"].to_pylist() if edge["kind"] == "cosine"]
    assert [(edge["source"], edge["target"], edge["count"]) for edge in cosines] == [
        (i, (i + 1) % F, None) for i in range(F)
    ]


def test_without_any_edges_there_is_an_empty_table(text: Planted, tmp_path: Path) -> None:
    alone = ContextStatistics(text.source, text.vocabulary, text.rows.tokens.size, SETTINGS, together=False)
    gather_contexts({"features": alone}, text.reader(3), text.rows, SavedPass(tmp_path / "d", {}), NullProgress())
    edges = make_tables(alone, some_effects(), labels(), VOCABULARY)["edges"]
    assert len(edges) == 0
    assert edges.schema.equals(TABLES["edges"])


def test_tiers_are_withheld_unless_more_labels_pass_than_of_every_floor() -> None:
    tiers = ["high"] * 40 + ["medium"] * 10 + ["unlabelled"] * 50 + ["rare", "dead"]

    def with_tiers(tiers: list[str]) -> OfflineLabels:
        scores = [Scores(9, 1, 1, 100) if tier in ("high", "medium") else Scores(1, 9, 9, 100) for tier in tiers]
        return replace(labels(), tiers=tiers, scores=scores, shuffled=[False] * 90)

    ours = with_tiers(tiers)
    below, equal = (with_tiers(["high"] * n + ["unlabelled"] * (100 - n)) for n in (20, 50))
    kept, compared = held_against(ours, {"low": below})
    assert kept.tiers == ours.tiers
    assert compared["low"]["difference"] == pytest.approx(0.3)
    assert compared["low"]["low"] > 0
    # F1 is 0.9 of a label that passed and 0.1 of one that failed.
    assert (compared["low"]["f1"], compared["low"]["f1_difference"]) == pytest.approx((0.26, 0.24))
    assert compared["low"]["f1_low"] > 0
    assert compared["low"]["by_patterns"] == {"1": 0.2, "3": 0.4, "8": 0.5, "64": 0.6}
    withheld, compared = held_against(ours, {"low": below, "equal": equal})
    assert compared["equal"]["low"] < 0 < compared["equal"]["high"]
    assert withheld.tiers == ["withheld"] * 50 + ["unlabelled"] * 50 + ["rare", "dead"]
    assert above_chance(compared) is False
    # A shuffled label that passes as often is a floor too.
    withheld, compared = held_against(replace(ours, shuffled=[True] * 9 + [False] * 9), {})
    assert compared["shuffled labels"]["share"] == 0.5
    assert "high" not in withheld.tiers
