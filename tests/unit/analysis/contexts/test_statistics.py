from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from helpers.planted_firings import Planted, planted
from lightsae.analysis.contexts import stage as context_stage
from lightsae.analysis.contexts import statistics as contexts
from lightsae.analysis.contexts import token_counts as pairs
from lightsae.analysis.contexts.stage import SavedPass, gather_contexts
from lightsae.analysis.contexts.statistics import ContextSettings, ContextStatistics
from lightsae.progress import NullProgress

SETTINGS = ContextSettings(top=4, sampled=5, near_misses=3, seed=2)


def empty(text: Planted) -> dict[str, ContextStatistics]:
    total = text.rows.tokens.size
    return {
        "features": ContextStatistics(text.source, text.vocabulary, total, SETTINGS, together=True),
        "neurons": ContextStatistics(text.source, text.vocabulary, total, SETTINGS, together=False),
    }


def gather(text: Planted, target: Path, rows_at_once: int = 2, fails_at: int = -1) -> dict[str, ContextStatistics]:
    found = empty(text)
    reader = text.reader(rows_at_once, fails_at)
    gather_contexts(found, reader, text.rows, SavedPass(target, {"seed": 2}), NullProgress())
    return found


@pytest.mark.parametrize("fails_at", [1, 2, 9, 44])
def test_a_killed_pass_goes_on_to_the_same_bits(fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = planted(rows=90, features=8)
    # Tables so small that partners are dropped all the time: also that must not depend on when a state was saved.
    monkeypatch.setattr(contexts, "_TOKENS_KEPT", 1)
    monkeypatch.setattr(pairs, "_WAITING", 40)
    whole = gather(text, tmp_path / "whole")
    monkeypatch.setattr(context_stage, "SAVE_EVERY", 0.0)
    target = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="killed"):
        gather(text, target, fails_at=fails_at)
    saved = SavedPass(target, {"seed": 2})
    assert saved.load(empty(text)) == fails_at
    again = gather(text, target)
    for name, statistics in whole.items():
        expected, found = statistics.state(), again[name].state()
        assert expected.keys() == found.keys()
        for key in expected:
            assert expected[key].dtype == found[key].dtype
            np.testing.assert_array_equal(expected[key], found[key], err_msg=f"{name}/{key}")
        for kind in ("on", "before", "after"):
            for a, b in zip(getattr(statistics, kind).top(3), getattr(again[name], kind).top(3), strict=True):
                np.testing.assert_array_equal(a, b)
    for a, b in zip(whole["features"].cofiring.edges(4), again["features"].cofiring.edges(4), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_pass_is_not_read_again_and_other_questions_have_another_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = planted()
    monkeypatch.setattr(context_stage, "SAVE_EVERY", 0.0)
    gather(text, tmp_path / "d", rows_at_once=4)  # the last batch is shorter
    gather(text, tmp_path / "d", rows_at_once=4, fails_at=0)  # would fail at its first batch
    assert SavedPass(tmp_path / "d", {"seed": 3}).load(empty(text)) == 0
    saved = SavedPass(tmp_path / "d", {"seed": 2})
    assert saved.load(empty(text)) == 8
    saved.clear()
    saved.clear()
    assert saved.load(empty(text)) == 0
    assert not list(tmp_path.iterdir())


def test_progress_is_told_in_tokens(tmp_path: Path) -> None:
    text, told = planted(), []

    class Listener(NullProgress):
        def stage(self, name, total):  # type: ignore[no-untyped-def]
            told.append((name, total))
            return _Telling(told)

    gather_contexts(empty(text), text.reader(12), text.rows, SavedPass(tmp_path / "d", {}), Listener())
    context = text.context
    assert told == [("contexts", 30 * context), 12 * context, 24 * context, 30 * context]


class _Telling:
    def __init__(self, told: list[object]) -> None:
        self.told = told

    def __enter__(self):  # type: ignore[no-untyped-def]
        return self.told.append

    def __exit__(self, *_: object) -> None:
        pass


def test_token_statistics_equal_brute_force(tmp_path: Path) -> None:
    text = planted()
    found = gather(text, tmp_path / "d")["features"]
    fired = text.fired.reshape(len(text.rows), text.context, -1)
    for kind, shift in (("on", 0), ("before", -1), ("after", 1)):
        partners, counts = getattr(found, kind).top(text.vocabulary)
        for feature in range(6):
            brute: Counter[int] = Counter()
            for row, position in np.argwhere(fired[:, :, feature] > 0):
                if 0 <= position + shift < text.context:
                    brute[int(text.rows.tokens[row, position + shift])] += 1
            told = {p: c for p, c in zip(partners[feature].tolist(), counts[feature].tolist(), strict=True) if p >= 0}
            assert told == dict(brute)


def test_near_misses_are_where_a_feature_does_not_fire_and_comes_nearest(tmp_path: Path) -> None:
    text = planted(rows=12)
    found = gather(text, tmp_path / "d", rows_at_once=6)["features"].near_misses.windows()
    # Of 2 batches the first is looked at; the last feature is dead.
    dense = np.where(text.counted.ravel()[:, None] & (text.dense <= 0), text.dense, -np.inf)
    nearest = dense.reshape(12, text.context, -1)[:6]
    for feature in range(5):
        best = nearest[:, :, feature].max(1)
        rows = np.argsort(-best)[: SETTINGS.near_misses]
        assert found.rows[feature].tolist() == rows.tolist()
        assert found.positions[feature].tolist() == nearest[rows, :, feature].argmax(1).tolist()
        np.testing.assert_array_equal(found.scores[feature], best[rows])
        assert not found.peaks[feature].any()
    assert not found.there[5].any()


def test_a_source_without_near_misses_and_none_asked_for(tmp_path: Path) -> None:
    text = planted(rows=4)
    source = text.source
    source.nearly = lambda activations: None  # type: ignore[method-assign]
    found = ContextStatistics(source, text.vocabulary, text.rows.tokens.size, SETTINGS, together=False)
    gather_contexts({"x": found}, text.reader(2), text.rows, SavedPass(tmp_path / "d", {}), NullProgress())
    assert not found.near_misses.windows().there.any()
    assert found.moments.fires.any()


@pytest.mark.parametrize("kind", ["top", "sampled", "near_misses"])
def test_tokens_that_do_not_count_are_never_peaks(kind: str, tmp_path: Path) -> None:
    text = planted()
    # Where tokens do not count, features would fire most.
    dense = np.where(text.counted.ravel()[:, None], text.dense, 50).astype(np.float32)
    loud = Planted(text.rows, dense, text.counted, text.vocabulary)
    statistics = gather(loud, tmp_path / "d")["features"]
    windows = getattr(statistics, kind).windows()
    feature, slot = windows.there.nonzero()
    assert len(feature) >= 10
    assert text.counted[windows.rows[feature, slot], windows.positions[feature, slot]].all()
    assert statistics.moments.maximum.max() < 50
    assert windows.values.max() < 50


def test_what_is_kept_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    text = planted()
    one, other = (gather(text, tmp_path / str(n), n)["features"] for n in (1, 30))
    for kind in ("top", "sampled"):
        a, b = getattr(one, kind).windows(), getattr(other, kind).windows()
        for name in ("scores", "tokens", "values", "rows", "positions"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
