"""Thresholds: the realised rate on other documents is the asked one; what is a false positive; drift end to end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.reading.text import TextRows
from lightsae.errors import ConfigError, FormatError, ModelError
from lightsae.lm import LanguageModel
from lightsae.metrics.intervals import share_of
from lightsae.production.monitor import Alarm, Event, Thresholds, calibrate, monitor
from lightsae.production.monitor.conformal import least_effective, threshold_for
from lightsae.sae import SparseAutoencoder


def synthetic(draw: np.random.Generator, documents: int, alike: float) -> tuple[NDArray, NDArray]:
    """Activations with a part that all tokens of a document share."""
    sizes = draw.integers(20, 200, documents)
    of = np.repeat(np.arange(documents), sizes)
    shared = draw.normal(size=documents)[of] * alike**0.5
    values = shared + draw.normal(size=len(of)) * (1 - alike) ** 0.5
    return np.maximum(values, 0).astype(np.float32), of


@pytest.mark.parametrize("alike", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_the_realised_rate_is_at_most_the_asked_one(alike: float, rate: float) -> None:
    realised, inside, kept = [], 0, 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        threshold, _ = threshold_for(*synthetic(draw, 300, alike), rate)
        values, of = synthetic(draw, 300, alike)
        if not np.isfinite(threshold):
            continue
        kept += 1
        share = share_of(values > threshold, of)
        realised.append(share.rate)
        inside += share.interval()[0] <= rate
    # In expectation over texts, within what 200 of them tell; and not by firing never.
    assert kept == 200
    assert np.mean(realised) <= rate + 2 * np.std(realised) / kept**0.5
    assert np.mean(realised) > 0.5 * rate
    # The interval tells of the luck of the test text; that of the calibration text, as large, comes on top.
    assert inside >= 0.8 * kept


@pytest.mark.parametrize(("alike", "rate"), [(0.0, 0.02), (0.3, 0.02), (0.8, 0.1)])
def test_with_a_confidence_few_calibrations_exceed_the_rate(alike: float, rate: float) -> None:
    """The true rate is known: every activation is normal. On average alone, half of the calibrations exceed it."""
    runs, exceeded = 200, {0.9: 0, None: 0}
    for seed in range(runs):
        text = synthetic(np.random.default_rng(seed), 150, alike)
        for confidence in exceeded:
            threshold, _ = threshold_for(*text, rate, confidence)
            exceeded[confidence] += bool(stats.norm.sf(threshold) > rate)
    # 10%, and the luck of 200 runs.
    assert exceeded[0.9] <= stats.binom.ppf(0.99, runs, 0.1)
    assert exceeded[None] > 0.35 * runs


def test_an_order_statistic_by_hand() -> None:
    """Of 99 independent values, rate 10%: P(Binomial(99, 0.1) <= 5) = 0.061 and <= 6 = 0.123, so 5 may exceed it."""
    values = np.arange(1, 100, dtype=np.float32)
    assert threshold_for(values, np.arange(99), 0.1, 0.9)[0] == 99 - 5
    # With none, 0.98^n must be at most 0.1.
    assert least_effective(0.02, 0.9) == pytest.approx(113.97, abs=0.01)
    assert threshold_for(values, np.arange(99), 0.02, 0.9)[0] == np.inf


def test_one_value_of_each_size() -> None:
    values = np.arange(1, 100, dtype=np.float32)
    # Of 99 the first to be exceeded by none is needed for 1%: (0 + 1) / 100.
    assert threshold_for(values, np.arange(99), 0.0102)[0] == 99
    assert threshold_for(values, np.arange(99), 0.11)[0] == 89
    assert threshold_for(values, np.arange(99), 0.01)[0] == np.inf
    # A feature that is silent on more than the rate: every firing counts.
    assert threshold_for(np.where(values > 97, values, 0), np.arange(99), 0.1)[0] == 0


def test_tokens_of_one_document_are_worth_one() -> None:
    happened = np.repeat([True, False, False, False] * 10, 50)
    share = share_of(happened, np.repeat(np.arange(40), 50))
    assert share.effective == pytest.approx(39, rel=0.01)
    assert share_of(happened, np.arange(2000)).effective == pytest.approx(2000, rel=0.01)
    assert share.interval()[0] < 0.15 < 0.35 < share.interval()[1]


def documents(seed: int, n: int = 60, favourite: int | None = None) -> list[list[int]]:
    """Texts of random tokens, of different lengths; 1 in 4 tokens the favourite one, where there is one."""
    draw = np.random.default_rng(seed)
    texts = [draw.integers(3, 61, int(draw.integers(8, 30))) for _ in range(n)]
    if favourite is not None:
        texts = [np.where(draw.random(len(text)) < 0.25, favourite, text) for text in texts]
    return [[1, *text.tolist()] for text in texts]


@pytest.fixture
def with_rule(
    make_dictionary: Callable[..., FeatureDictionary],
    sae: SparseAutoencoder,
    lm: LanguageModel,
    byte_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> FeatureDictionary:
    """Feature 3 has a detector that passed, the token 9, beside a label that passed, the token 8."""

    def change(tables: dict[str, Any], _manifest: dict[str, Any]) -> None:
        labels = tables["labels"].to_pylist()
        for row in labels:
            row["rule"] = None
            if row["feature"] == 3 and row["test"] == "tokens":
                rules = {t: json.dumps({"patterns": [["token", t]], "shares": [1.0]}) for t in (8, 9)}
                row |= {"rule": rules[8], "source": "rule", "passed": True}
                detector = row | {"rule": rules[9], "source": "detector"}
        labels.insert(0, detector)
        tables["labels"] = tables["labels"].from_pylist(labels, schema=tables["labels"].schema)

    monkeypatch.setitem(vars(lm), "tokenizer", byte_tokenizer)
    return make_dictionary(sae, "ruled", change)


def test_end_to_end(lm: LanguageModel, sae: SparseAutoencoder, with_rule: FeatureDictionary, tmp_path: Path) -> None:
    texts = documents(0, 80, favourite=9)
    found = calibrate(lm, with_rule, sae=sae, texts=texts, features=[3, 4], rates=[0.05, 0.2], rows_at_once=7)
    found.save(tmp_path / "thresholds.json")
    assert Thresholds.load(tmp_path / "thresholds.json") == found
    assert found.sae == with_rule.manifest["sae"]["sha256"]
    assert (found.documents, found.held_out_documents) == (40, 40)
    counted = sum(len(text) - 1 for text in texts)
    assert found.tokens == counted
    ruled, plain = found.features[3], found.features[4]
    assert (ruled.kind, plain.kind) == ("concept", "rate")
    nines = sum(text.count(9) for text in texts)
    assert ruled.concept_share == pytest.approx(nines / counted)
    assert ruled.rates[0.05].tokens + ruled.rates[0.05].held_out == counted - nines
    assert plain.rates[0.05].tokens + plain.rates[0.05].held_out == counted
    for one in (ruled, plain):
        assert one.rates[0.05].threshold > one.rates[0.2].threshold
        for rate, tested in one.rates.items():
            assert tested.low <= rate
            assert tested.realised == tested.exceeded / tested.held_out
    events: list[Event] = []
    for rate in (0.05, 0.2):
        with monitor(
            lm,
            with_rule,
            sae=sae,
            features=[4],
            thresholds=tmp_path / "thresholds.json",
            false_positive_rate=rate,
            sinks=events.append,
        ) as watch:
            for text in texts:
                lm.logits(torch.tensor([text]))
        # Of the same text, half of which the threshold comes from.
        assert watch.summary().features[0].firings / watch.tokens == pytest.approx(rate, abs=0.03)
    assert events[0].token_text is not None


def test_rows_of_a_corpus_give_the_same(
    lm: LanguageModel, sae: SparseAutoencoder, with_rule: FeatureDictionary
) -> None:
    ids = np.random.default_rng(0).integers(3, 61, (40, 20)).astype(np.int32)
    each = np.repeat(np.arange(40)[:, None], 20, 1)
    rows = TextRows(ids, each, np.arange(40))
    made = [
        calibrate(lm, with_rule, sae=sae, texts=texts, features=[3, 4], rates=[0.1])
        for texts in (rows, [row.tolist() for row in ids])
    ]
    assert made[0] == made[1]
    assert made[0] != calibrate(lm, with_rule, sae=sae, texts=rows, features=[3, 4], rates=[0.1], seed=1)
    sure = calibrate(lm, with_rule, sae=sae, texts=rows, features=[3, 4], rates=[0.1], confidence=0.9)
    assert sure.confidence == 0.9
    for feature in (3, 4):
        assert sure.at(feature, 0.1).threshold > made[0].at(feature, 0.1).threshold


def test_too_little_text_is_refused(lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary) -> None:
    def refused(match: str, **kwargs: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            calibrate(lm, dictionary, **({"sae": sae, "features": [4], "texts": documents(0, 6)} | kwargs))

    refused(r"feature 4: \d+ tokens of 3 documents.*too few for a rate of 0.001, which takes 1000", rates=[0.001])
    refused("3 documents; thresholds and their test take at least 4", texts=documents(0, 3))
    refused("feature 4: .*with a confidence of 0.99, which takes 458", rates=[0.01], confidence=0.99)
    refused("confidence is 90.0; it lies above 0.5 and below 1", confidence=90.0)
    refused("rates holds 0", rates=[0.0])
    refused("rates is empty", rates=[])
    refused("texts is empty", texts=[])
    refused("no tokenizer", texts=["a"])
    refused("held_out_share is 1", held_out_share=1.0)


def test_thresholds_of_another_sae_or_a_damaged_file_are_refused(
    lm: LanguageModel,
    make_sae: Callable[..., SparseAutoencoder],
    make_dictionary: Callable[..., FeatureDictionary],
    sae: SparseAutoencoder,
    dictionary: FeatureDictionary,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "thresholds.json"
    found = calibrate(lm, dictionary, sae=sae, texts=documents(0), features=[4], rates=[0.1])
    found.save(path)

    def refused(kind: type[Exception], match: str, **kwargs: Any) -> None:
        settings = {"sae": sae, "features": [4], "thresholds": path, "false_positive_rate": 0.1} | kwargs
        with pytest.raises(kind, match=match), monitor(lm, settings.pop("d", dictionary), **settings):
            pass

    refused(ConfigError, "false_positive_rate is 0.01; calibrated are 0.1", false_positive_rate=0.01)
    # A rate means nothing where no threshold was calibrated.
    refused(ConfigError, "false_positive_rate is 0.1, but no calibrated thresholds", thresholds=None)
    refused(ConfigError, "feature 5 has no calibrated threshold", features=[4, 5])
    other = make_sae(lm, "resid_post.1", "TopK")
    refused(FormatError, "calibrated for the SAE", sae=other, d=make_dictionary(other, "other"))
    told = json.loads(path.read_text())
    # A file of the version before knows no counts by text: its thresholds hold, and there are no drift alarms.
    former = json.loads(path.read_text()) | {"version": 1}
    del former["sizes"], former["confidence"]
    former["features"]["4"] |= {"alike": 0.1, "error": 0.01}
    del former["features"]["4"]["active"]
    (tmp_path / "former.json").write_text(json.dumps(former))
    with (
        caplog.at_level("WARNING"),
        monitor(
            lm, dictionary, sae=sae, features=[4], thresholds=tmp_path / "former.json", false_positive_rate=0.1
        ) as watch,
    ):
        assert watch.summary().features[0].threshold == found.at(4, 0.1).threshold
    assert "No drift alarms" in caplog.text
    for match, change in {
        "holds no thresholds": {"kind": "something"},
        "has version 9": {"version": 9},
        "is damaged": {"surprise": 1},
    }.items():
        path.write_text(json.dumps(told | change))
        refused(FormatError, match)
    told["features"]["4"]["rates"]["0.1"]["threshold"] = -1.0
    path.write_text(json.dumps(told))
    refused(FormatError, "is damaged .a threshold is -1")
    path.write_text("{")
    refused(FormatError, "is no JSON")
    assert issubclass(ModelError, ValueError)


def test_drift_end_to_end(lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary) -> None:
    found = calibrate(lm, dictionary, sae=sae, texts=documents(0, 200), features=[3, 4, 7], rates=[0.1])
    told: list[Event] = []

    def run(texts: list[list[int]]) -> str:
        told.clear()
        with monitor(
            lm,
            dictionary,
            sae=sae,
            thresholds=found,
            features=[3, 4, 7],
            false_positive_rate=0.1,
            sinks=lambda e: told.append(e) if isinstance(e, Alarm) else None,
            drift_window=600,
        ) as watch:
            for text in texts:
                lm.logits(torch.tensor([text]))
            assert list(watch.alarms) == told
            return str(watch)

    shown = run(documents(5, 120))
    assert not told
    assert " to " in shown
    # All tokens alike: each feature is active always or never.
    run([[1] + [40] * 19 for _ in range(120)])
    assert {alarm.state for alarm in told} == {"left"}
    for alarm in told:
        outside = alarm.frequency > alarm.high if alarm.side == "above" else alarm.frequency < alarm.low
        assert outside
        assert alarm.expected == found.features[alarm.feature].frequency
        assert alarm.tokens >= 600
