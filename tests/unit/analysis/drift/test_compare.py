import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from lightsae.analysis.drift import matching
from lightsae.analysis.drift.compare import DriftThresholds, compare
from lightsae.analysis.drift.matching import match
from lightsae.analysis.drift.read import SAEOnText
from lightsae.errors import ConfigError

FEATURES, WIDTH, TOKENS = 80, 64, 4000


def planted(seed: int = 0, features: int = FEATURES) -> SAEOnText:
    """Random directions; each feature fires on 1% to 5% of the tokens, with its own strengths."""
    draw = np.random.default_rng(seed)
    columns = []
    for _ in range(features):
        column = np.zeros(TOKENS)
        where = draw.choice(TOKENS, draw.integers(TOKENS // 100, TOKENS // 20), replace=False)
        column[where] = 0.5 + draw.exponential(size=len(where))
        columns.append(column)
    decoder = torch.from_numpy(draw.normal(size=(features, WIDTH)).astype(np.float32))
    return SAEOnText(decoder, sparse.csc_array(np.array(columns).T))


def permuted(a: SAEOnText, seed: int = 5) -> tuple[SAEOnText, np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(a))
    return SAEOnText(3.0 * a.decoder[order], a.activations[:, order]), np.argsort(order)


def test_a_permuted_copy_is_kept_whole_with_the_right_matches() -> None:
    a = planted()
    b, where = permuted(a)
    report = compare(a, b, labels={0: "zero", 7: "seven"})
    rows = report.features.to_pydict()
    assert rows["verdict"] == ["kept"] * FEATURES
    assert rows["match"] == where.tolist()
    assert rows["cosine"] == pytest.approx([1.0] * FEATURES, abs=1e-5)
    assert rows["correlation"] == pytest.approx([1.0] * FEATURES, abs=1e-5)
    assert report.summary["means"]["cosine"] == {
        way: pytest.approx(1.0, abs=1e-5) for way in ("a_to_b", "b_to_a", "one_to_one")
    }
    assert [i for i, s in enumerate(rows["label_status"]) if s == "carried"] == [0, 7]
    assert report.summary["labels"] == {"carried": 2, "flagged": 0, "revoked": 0}


def test_planted_changes_are_told_apart() -> None:
    """0-9 rotated, 10-19 split in two, 20-29 replaced by fresh ones, 30 falls silent in the text; the rest stays."""
    a = planted()
    draw = np.random.default_rng(1)
    decoder, columns = a.decoder.clone(), a.activations.toarray()
    columns[:, 30] = 0
    a = SAEOnText(a.decoder, sparse.csc_array(columns))
    for i in range(10):
        other = torch.from_numpy(draw.normal(size=WIDTH).astype(np.float32))
        # 60 degrees: cosine 0.5.
        unit = torch.nn.functional.normalize(decoder[i], dim=0)
        other = torch.nn.functional.normalize(other - (other @ unit) * unit, dim=0)
        decoder[i] = 0.5 * unit + 0.75**0.5 * other
    fresh = planted(seed=77)
    new_rows, halves = [], []
    for i in range(10, 20):
        where = np.flatnonzero(columns[:, i])
        half = np.zeros(TOKENS)
        half[where[: len(where) // 2]] = columns[where[: len(where) // 2], i]
        halves.append(half)
        columns[:, i] -= half
        new_rows.append(fresh.decoder[i])
        decoder[i] = fresh.decoder[i + 20]
    decoder[20:30] = fresh.decoder[50:60]
    columns[:, 20:30] = fresh.activations.toarray()[:, 50:60]
    b = SAEOnText(torch.cat([decoder, torch.stack(new_rows)]), sparse.csc_array(np.column_stack([columns, *halves])))
    report = compare(a, b, labels={i: f"label {i}" for i in range(40)})
    rows = report.features.to_pydict()
    assert rows["verdict"][:10] == ["moved"] * 10
    assert rows["verdict"][10:20] == ["split"] * 10
    assert [set(p) for p in rows["parts"][10:20]] == [{i, FEATURES + i - 10} for i in range(10, 20)]
    assert rows["verdict"][20:30] == ["lost"] * 10
    assert rows["verdict"][30] == "untested"
    assert rows["verdict"][31:] == ["kept"] * (FEATURES - 31)
    assert report.summary["labels"] == {"carried": 9, "flagged": 21, "revoked": 10}
    assert report.summary["shares"]["lost"] == pytest.approx(10 / 79)


def test_strangers_are_lost_and_the_null_says_how_often_they_are_not() -> None:
    report = compare(planted(0), planted(1))
    shares, base = report.summary["shares"], report.summary["null"]["shares"]
    assert shares["kept"] == shares["split"] == 0
    assert shares["lost"] > 0.9
    # The floor is the 99% quantile of the null itself.
    assert base["moved"] <= 0.03
    assert base["kept"] == base["split"] == 0
    quantiles = report.summary["null"]["quantiles"]["both"]
    assert quantiles["0.5"] < report.summary["thresholds"]["floor"] == pytest.approx(quantiles["0.99"])
    # MMCS of random directions: near the expected largest of 80 cosines in 64 dimensions, far from 0 and 1.
    assert 0.2 < report.summary["means"]["cosine"]["a_to_b"] < 0.45


def test_reseeds_raise_the_floor_but_for_the_features_that_come_back() -> None:
    """Between the reseeds 20 features come back, and 60 are half alike, as trainings on the same data are."""
    a = planted()
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(a.decoder.shape, generator=draw)
    half_alike = SAEOnText(a.decoder + 1.2 * noise, planted(3).activations)
    decoder, columns = half_alike.decoder.clone(), half_alike.activations.toarray()
    decoder[:20], columns[:, :20] = a.decoder[:20], a.activations.toarray()[:, :20]
    reseed = SAEOnText(decoder, sparse.csc_array(columns))
    changed = SAEOnText(a.decoder + 1.2 * torch.randn(a.decoder.shape, generator=draw), planted(4).activations)
    against_chance = compare(a, changed).summary
    against_reseed = compare(a, changed, reseeds=(a, reseed)).summary
    assert against_reseed["null"]["kind"] == "reseed"
    assert against_reseed["null"]["shares"]["kept"] == pytest.approx(20 / FEATURES)
    assert against_chance["shares"]["moved"] > 0.9
    # Just as unlike as the reseeds' other features are: half of them are below their median.
    assert against_chance["shares"]["lost"] < 0.1
    assert 0.3 < against_reseed["shares"]["lost"] < 0.7
    assert against_chance["thresholds"]["floor"] < against_reseed["thresholds"]["floor"] < 0.7


def test_matching_over_candidates_is_that_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    a = planted(features=50)
    order = np.random.default_rng(2).permutation(50)
    b = SAEOnText(a.decoder[order] + 0.5 * planted(9, 50).decoder, a.activations[:, order])
    exact = match(a, b)
    monkeypatch.setattr(matching, "DENSE", 10)
    monkeypatch.setattr(matching, "CANDIDATES", 12)
    monkeypatch.setattr(matching, "_ROWS", 16)
    sparse_one = match(a, b)
    for measure in ("cosine", "correlation", "both"):
        assert sparse_one.partners[measure].tolist() == exact.partners[measure].tolist() == np.argsort(order).tolist()
        assert np.allclose(sparse_one.nearest_back[measure], exact.nearest_back[measure], atol=1e-6)


def test_few_partners_among_many_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "DENSE", 10)
    a = planted()
    few = SAEOnText(a.decoder[5:10], a.activations[:, 5:10])
    assert match(a, few).partners["both"].tolist() == [-1] * 5 + [0, 1, 2, 3, 4] + [-1] * (FEATURES - 10)


def test_correlations_are_pearsons() -> None:
    a, b = planted(0, 6), planted(0, 6)
    b = SAEOnText(b.decoder, (b.activations + planted(1, 6).activations).tocsc())
    found = matching.values_of(a, b, np.arange(6))["correlation"]
    expected = [np.corrcoef(a.activations.toarray()[:, i], b.activations.toarray()[:, i])[0, 1] for i in range(6)]
    assert found == pytest.approx(expected, abs=1e-9)


def test_more_features_than_partners() -> None:
    a = planted()
    b = SAEOnText(a.decoder[:50], a.activations[:, :50])
    report = compare(a, b)
    rows = report.features.to_pydict()
    assert rows["match"][50:] == [None] * 30
    assert rows["verdict"] == ["kept"] * 50 + ["lost"] * 30


def test_the_report_is_json_and_text(tmp_path: Path) -> None:
    report = compare(planted(0), planted(1), labels={3: 'a\n"b" \x1b[31m日本'})
    report.to_json(tmp_path / "drift.json")
    told = json.loads((tmp_path / "drift.json").read_text())
    assert told["summary"]["null"]["kind"] == "chance"
    assert told["features"][3]["label_status"] == "revoked"
    text = report.to_text()
    assert "lost" in text
    assert "日本" in text
    assert "\x1b" not in text


def test_what_cannot_be_compared_is_refused() -> None:
    a = planted()
    with pytest.raises(ConfigError, match="64 dimensions and the second to 8"):
        compare(a, SAEOnText(a.decoder[:, :8], a.activations))
    with pytest.raises(ConfigError, match="same text"):
        compare(a, SAEOnText(a.decoder, a.activations[:100]))
    with pytest.raises(ConfigError, match="first SAE has 79 features"):
        compare(SAEOnText(a.decoder[1:], a.activations), a)
    with pytest.raises(ConfigError, match="same is 7"):
        compare(a, a, thresholds=DriftThresholds(same=7.0))
