import numpy as np
import pytest

from helpers.judging_server import CONTEXT, WORDS, planted_pool
from lightsae.analysis.labels.llm.examples import NEGATIVES, Example, ScorePool, negatives, positives, windows_of
from lightsae.analysis.labels.llm.material import FeatureMaterial, material_of
from lightsae.errors import ConfigError


def test_positives_fire_and_are_spread_over_the_activations(pool: ScorePool) -> None:
    found = positives(pool, 1, 20, seed=0)
    assert len(found) == 20
    peaks = np.array([e.values[e.peak] for e in found])
    assert all(e.fires and e.texts[e.peak] == " dog" and e.kind == "positive" for e in found)
    assert (np.diff(peaks) > 0).all()
    # Every fifth of the activations, which are uniform on 1..9, has its part.
    assert np.histogram(peaks, bins=5, range=(1, 9))[0].min() >= 3
    assert all((v > 0) == (t == " dog") for e in found for t, v in zip(e.texts, e.values, strict=True))


def test_negatives_never_fire_and_are_what_their_kind_says(pool: ScorePool) -> None:
    found = negatives(pool, 3, 15, seed=0, similar=[5, 6, 3])
    assert list(found) == list(NEGATIVES)
    for kind, windows in found.items():
        assert len(windows) == 15
        assert all(not e.fires and not any(e.values) and e.kind == kind for e in windows)
    # Feature 3 fires on every other « run»: the others are what its hard negatives stand around.
    assert {e.texts[e.peak] for e in found["hard"]} == {" run"}
    assert {e.texts[e.peak] for e in found["near"]} == {" sea", " oak"}
    assert len({e.texts[e.peak] for e in found["random"]}) > 3


def test_windows_stay_within_their_document(pool: ScorePool) -> None:
    for example in positives(pool, 0, 50, seed=0):
        half = CONTEXT // 2
        row, second = divmod(example.document, 2)
        text = [WORDS[t] for t in pool.tokens[row, second * half : (second + 1) * half]]
        joined, window = "".join(text), "".join(example.texts)
        assert window in joined
        assert example.peak <= 16
        assert len(example.texts) - example.peak <= 9


def test_the_draw_follows_from_seed_and_feature_alone(pool: ScorePool) -> None:
    assert positives(pool, 2, 9, seed=4) == positives(planted_pool(), 2, 9, seed=4) != positives(pool, 2, 9, seed=5)
    alone = negatives(pool, 3, 9, seed=4, kinds=["hard"])["hard"]
    assert alone == negatives(planted_pool(), 3, 9, seed=4, kinds=["hard"])["hard"]


def test_where_there_is_too_little_less_comes_back() -> None:
    pool = planted_pool()
    silent = ScorePool(
        pool.tokens, pool.documents, WORDS, np.array([5]), np.array([0, 0, 1]), np.ones(pool.tokens.size, bool)
    )
    assert positives(silent, 0, 10, seed=0) == []
    assert len(positives(silent, 1, 10, seed=0)) == 1  # values were not kept: each counts as 1
    assert positives(silent, 1, 10, seed=0)[0].values.count(1.0) == 1
    # Feature 0 fires on every « cat»: a window around one without its firing does not exist.
    found = negatives(pool, 0, 10, seed=0)
    assert found["hard"] == found["near"] == []
    # A feature that fires everywhere has no negatives at all.
    n = pool.tokens.size
    everywhere = ScorePool(pool.tokens, pool.documents, WORDS, np.arange(n), np.array([0, n]), np.ones(n, bool))
    assert not any(negatives(everywhere, 0, 10, seed=0, similar=[0]).values())


def test_tokens_that_do_not_count_have_no_windows(pool: ScorePool) -> None:
    counted = np.zeros(pool.tokens.size, bool)
    counted[7::CONTEXT] = True
    part = ScorePool(pool.tokens, pool.documents, WORDS, pool.firings, pool.starts, counted)
    found = negatives(part, 3, 10, seed=0)
    assert {e.peak for e in found["random"]} == {7}
    assert {e.texts[e.peak] for e in found["hard"]} == {" run"}
    assert {e.peak for e in found["hard"]} == {7}


def context(kind: str, rank: int, value: float, document: int, stratum: int | None = None) -> dict[str, object]:
    told = {"kind": kind, "rank": rank, "stratum": stratum, "document": document, "row": document, "position": 1}
    return told | {"texts": [" the", " dog"], "values": [0.05, value], "peak": 1}


def test_material_is_made_of_the_tables_and_of_other_documents(pool: ScorePool) -> None:
    row = {
        "feature": 1,
        "nearest": [{"feature": 2, "cosine": 0.5}],
        "tokens_on": [{"token": 1, "text": " dog", "count": 9, "share": 1.0}],
        "promoted": [{"token": 2, "text": " red", "logit": 1.0}],
    }
    contexts = [
        context("stratum", 0, 3.0, 1001, stratum=1),
        context("stratum", 1, 9.0, 1000, stratum=4),  # shown among the strongest already
        context("stratum", 2, 0.8, 1003, stratum=0),  # below a tenth of the maximum: it does not fire
        context("top", 0, 9.0, 1000),
        context("near_miss", 0, 0.0, 1002),
    ]
    material = material_of(row, contexts, pool, least=0.9, windows=12)
    assert [e.values for e in material.shown] == [(0.0, 9.0), (0.0, 3.0)]
    assert [e.document for e in material.shown_near_misses] == [1002]
    assert (material.tokens, material.promoted) == ([(" dog", 1.0)], [" red"])
    assert len(material.positives) == len(material.negatives["near"]) == 12
    with pytest.raises(ConfigError, match=r"Document \d+ is shown for the label of feature 1 and used to test it"):
        material_of(row, [context("top", 0, 9.0, e.document) for e in material.positives], pool, least=0.9, windows=12)


def test_rows_of_the_contexts_table_become_examples() -> None:
    firing, silent = windows_of([context("top", 0, 2.0, 5), context("near_miss", 0, 0.0, 6)], least=0.1)
    assert firing == Example((" the", " dog"), (0.0, 2.0), 1, 5, True, "positive")
    assert not silent.fires


def test_a_document_is_either_shown_or_tested() -> None:
    window = Example(("a",), (1.0,), 0, 3, True, "positive")
    with pytest.raises(ConfigError, match="Document 3"):
        FeatureMaterial(0, shown=[window], positives=[window], negatives={})
