import numpy as np
import pytest

from helpers.planted_firings import Planted, planted
from lightsae.analysis.contexts.reservoirs import Reservoir, weighted_scores
from lightsae.analysis.reading.firings import AFTER, BEFORE, NO_TOKEN, Windows
from lightsae.analysis.reading.text import TextRows


def kept(text: Planted, k: int, rows_at_once: int, seed: int | None = None) -> Windows:
    """The best windows by activation; with a seed, a weighted sample."""
    reservoir = Reservoir(text.dense.shape[1], k)
    for firings in text.firings(rows_at_once):
        scores = firings.values if seed is None else weighted_scores(firings, seed)
        reservoir.update(firings, firings.feature_of, firings.token_of, scores)
    return reservoir.windows()


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("rows_at_once", [1, 4, 1000])
def test_the_best_windows_equal_brute_force(k: int, rows_at_once: int) -> None:
    text = planted()
    windows = kept(text, k, rows_at_once)
    fired = text.fired.reshape(len(text.rows), text.context, -1)
    for feature in range(6):
        best = fired[:, :, feature].max(1)  # one window a row
        order = [row for row in np.argsort(-best) if best[row] > 0][:k]
        n = len(order)
        assert windows.rows[feature, :n].tolist() == order
        assert windows.positions[feature, :n].tolist() == fired[order, :, feature].argmax(1).tolist()
        np.testing.assert_array_equal(windows.scores[feature, :n], best[order])
        np.testing.assert_array_equal(windows.peaks[feature, :n], best[order])
        assert not windows.there[feature, n:].any()
        assert (windows.tokens[feature, n:] == NO_TOKEN).all()


def test_windows_hold_what_stands_around_their_peak() -> None:
    text = planted()
    windows = kept(text, 6, 5)
    fired = text.fired.reshape(len(text.rows), text.context, -1)
    for feature, slot in np.argwhere(windows.there):
        row, position = windows.rows[feature, slot], windows.positions[feature, slot]
        start, end = max(0, position - BEFORE), min(text.context, position + AFTER + 1)
        inside = windows.tokens[feature, slot] != NO_TOKEN
        assert inside.sum() == end - start
        assert inside[BEFORE]
        np.testing.assert_array_equal(windows.tokens[feature, slot][inside], text.rows.tokens[row, start:end])
        np.testing.assert_array_equal(windows.values[feature, slot][inside], fired[row, start:end, feature])
        assert not windows.values[feature, slot][~inside].any()
        assert windows.documents[feature, slot] == text.rows.documents[row, position]


def test_the_sample_does_not_depend_on_batches_but_on_the_seed() -> None:
    text = planted(rows=60)
    one = kept(text, 8, 1, seed=3)
    for rows_at_once in (7, 1000):
        other = kept(text, 8, rows_at_once, seed=3)
        for name in ("scores", "tokens", "values", "rows", "positions", "documents"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.rows != kept(text, 8, 7, seed=4).rows).any()


def test_a_sampled_row_is_there_in_proportion_to_its_activation() -> None:
    # One firing a row, k = 1: the chance of a row is its activation's share of the sum.
    weights = np.array([1.0, 2.0, 3.0, 6.0], np.float32)
    features = 4000
    rows = TextRows(np.zeros((4, 2), np.int32), np.arange(8).reshape(4, 2), np.arange(4))
    dense = np.full((8, features), -1, np.float32)
    dense[1::2] = weights[:, None]
    windows = kept(Planted(rows, dense, np.ones((4, 2), bool), 1), 1, 2, seed=0)
    share = np.bincount(windows.rows[:, 0], minlength=4) / features
    # Four standard deviations of a share are at most 0.032.
    np.testing.assert_allclose(share, weights / weights.sum(), atol=0.032)
    assert (windows.positions == 1).all()


def test_uniform_numbers_of_neighbouring_tokens_and_features_are_unrelated() -> None:
    text = planted(rows=40, features=20)
    always = Planted(text.rows, np.ones_like(text.dense), np.ones_like(text.counted), text.vocabulary)
    firings = next(always.firings())
    drawn = np.zeros(text.dense.shape)
    drawn[firings.token_of, firings.feature_of] = np.exp(weighted_scores(firings, 0))  # activation 1: log(u)
    assert abs(drawn.mean() - 0.5) < 0.01
    assert abs(drawn.var() - 1 / 12) < 0.002
    for a, b in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03


def test_a_seed_does_not_shift_the_draws_of_the_features() -> None:
    """Feature 3 of seed 0, feature 0 of seed 3 and their like draw their own numbers."""
    text = planted(rows=40, features=20)
    always = Planted(text.rows, np.ones_like(text.dense), np.ones_like(text.counted), text.vocabulary)
    firings = next(always.firings())
    drawn = []
    for seed in range(4):
        scores = np.zeros(text.dense.shape)
        scores[firings.token_of, firings.feature_of] = np.exp(weighted_scores(firings, seed))
        drawn.append(scores)
    for seed in range(1, 4):
        assert abs(np.corrcoef(drawn[0][:, seed:].ravel(), drawn[seed][:, :-seed].ravel())[0, 1]) < 0.03
