import numpy as np
import pytest

from helpers.planted_firings import Planted, planted
from lightsae.analysis.contexts.moments import BINS, HISTOGRAM_EDGES, Moments
from lightsae.analysis.reading.firings import AFTER, BEFORE, NO_TOKEN
from lightsae.analysis.reading.text import TextRows


def moments_of(text: Planted, rows_at_once: int) -> Moments:
    moments = Moments(text.dense.shape[1])
    for firings in text.firings(rows_at_once):
        moments.update(firings)
    return moments


def test_firings_are_what_fires_on_tokens_that_count() -> None:
    text = planted()
    firings = next(text.firings())
    found = np.zeros_like(text.dense)
    found[firings.token_of, firings.feature_of] = firings.values
    np.testing.assert_array_equal(found, text.fired)
    assert len(firings.values) == (text.fired > 0).sum()
    assert (np.diff(firings.token_of) >= 0).all()
    np.testing.assert_array_equal(firings.tokens, text.rows.tokens)
    np.testing.assert_array_equal(firings.documents, text.rows.documents)
    np.testing.assert_array_equal(firings.rows, text.rows.numbers)


def test_windows_end_with_their_rows_and_look_values_up() -> None:
    text = planted()
    firings, context = next(text.firings()), text.context
    places, features = (a.ravel() for a in np.mgrid[0 : text.rows.tokens.size : 3, 0:6])
    tokens, values = firings.window_tokens(places), firings.window_values(places, features)
    fired = text.fired.reshape(len(text.rows), context, -1)
    for n, (place, feature) in enumerate(zip(places, features, strict=True)):
        row, position = divmod(int(place), context)
        for column in range(BEFORE + 1 + AFTER):
            at = position + column - BEFORE
            inside = 0 <= at < context
            assert tokens[n, column] == (text.rows.tokens[row, at] if inside else NO_TOKEN)
            assert values[n, column] == (fired[row, at, feature] if inside else 0)


def test_values_are_looked_up_where_nothing_fires_and_beyond_32_bits() -> None:
    text = planted(rows=4, features=3)
    silent = next(Planted(text.rows, -np.abs(text.dense), text.counted, text.vocabulary).firings())
    assert not silent.window_values(np.arange(20), np.zeros(20, np.int64)).any()
    # As many features as make (token, feature) keys exceed 32 bits: they lie at the end.
    firings = next(text.firings())
    far = type(firings)(
        firings.token_of,
        firings.feature_of + 2**30,
        firings.values,
        2**30 + 3,
        firings.tokens,
        firings.documents,
        firings.rows,
        firings.counted,
    )
    places, features = np.arange(112), np.arange(112) % 3
    expected = firings.window_values(places, features)
    np.testing.assert_array_equal(far.window_values(places, features + 2**30), expected)


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_moments_equal_brute_force(rows_at_once: int) -> None:
    text = planted()
    fired, moments = text.fired, moments_of(text, rows_at_once)
    documents = text.rows.documents.ravel()
    assert moments.tokens == text.counted.sum()
    np.testing.assert_array_equal(moments.document_tokens, np.bincount(documents[text.counted.ravel()]))
    for feature in range(6):
        values = fired[fired[:, feature] > 0, feature].astype(float)
        assert moments.fires[feature] == len(values)
        assert moments.documents[feature] == len(set(documents[fired[:, feature] > 0]))
        assert moments.mean[feature] == pytest.approx(values.mean() if len(values) else 0)
        assert moments.std[feature] == pytest.approx(values.std() if len(values) else 0)
        assert moments.maximum[feature] == (values.max() if len(values) else 0)
        edges = np.r_[0, HISTOGRAM_EDGES, np.inf]
        np.testing.assert_array_equal(moments.histogram[feature], np.histogram(values, edges)[0])
    assert moments.fires[5] == 0
    assert moments.document_spread[5] == 0


def test_a_value_on_an_edge_begins_its_bin() -> None:
    values = [2.0**-20, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[24], np.nextafter(np.float32(1), np.float32(0)), 2.0**30]
    n = len(values)
    rows = TextRows(np.zeros((1, n), np.int32), np.zeros((1, n), np.int64), np.zeros(1, np.int64))
    moments = Moments(1)
    dense = np.array(values, np.float32)[:, None]
    moments.update(next(Planted(rows, dense, np.ones((1, n), bool), 1).firings()))
    assert HISTOGRAM_EDGES[24] == 1.0
    assert len(HISTOGRAM_EDGES) == BINS - 1
    assert np.flatnonzero(moments.histogram[0]).tolist() == [0, 1, 24, 25, BINS - 1]


def test_a_document_that_goes_on_in_the_next_batch_counts_once() -> None:
    documents = np.array([[0, 0], [0, 0], [0, 1], [1, 1]])
    rows = TextRows(np.zeros((4, 2), np.int32), documents, np.arange(4))
    # Feature 0 fires everywhere, 1 in the first and the third row of document 0, 2 only in document 1.
    fires = np.array([[1, 1, -1], [1, -1, -1], [1, -1, -1], [1, -1, -1]] + [[1, 1, -1], [1, -1, 1]] + [[1, -1, 1]] * 2)
    text = Planted(rows, fires.astype(np.float32), np.ones((4, 2), bool), 1)
    for rows_at_once in (1, 2, 4):
        assert moments_of(text, rows_at_once).documents.tolist() == [2, 1, 1]


def test_document_spread_tells_random_firings_from_those_of_one_document() -> None:
    draw = np.random.default_rng(1)
    documents = np.sort(draw.integers(0, 200, 300 * 40)).reshape(300, 40)
    dense = np.full((300 * 40, 3), -1, np.float32)
    dense[draw.choice(300 * 40, 150, replace=False), 0] = 1
    dense[np.flatnonzero(documents.ravel() == 100)[:30], 1] = 1
    dense[draw.choice(300 * 40, 5000, replace=False), 2] = 1
    rows = TextRows(np.zeros((300, 40), np.int32), documents, np.arange(300))
    spread = moments_of(Planted(rows, dense, np.ones((300, 40), bool), 1), 50).document_spread
    assert spread[0] == pytest.approx(1, abs=0.1)
    assert spread[2] == pytest.approx(1, abs=0.01)
    assert spread[1] < 0.05
