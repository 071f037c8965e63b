import numpy as np
import pytest

from helpers.planted_firings import Planted, planted
from lightsae.analysis.reading import firing_collector
from lightsae.analysis.reading.firing_collector import FiringCollector
from lightsae.analysis.reading.firing_lists import FiringLists
from lightsae.metrics.conventions import FIRES_ABOVE


def collect(
    text: Planted, maximum: np.ndarray, rows_at_once: int, *, keep_values: bool = False
) -> tuple[FiringLists, FiringCollector]:
    collector = FiringCollector(text.source, maximum, keep_values=keep_values)
    for batch, counted in text.reader(rows_at_once).batches(text.rows):
        collector.update(batch, counted)
    return collector.lists(), collector


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_a_feature_fires_above_a_tenth_of_its_maximum(rows_at_once: int) -> None:
    text = planted()
    maximum = text.fired.max(0) * np.linspace(1, 6, 6, dtype=np.float32)
    lists, _ = collect(text, maximum, rows_at_once, keep_values=True)
    assert FIRES_ABOVE == 0.1
    assert len(lists) == 6
    assert lists.read == 1
    dropped = 0
    for feature in range(6):
        expected = np.flatnonzero(text.fired[:, feature] > 0.1 * maximum[feature])
        np.testing.assert_array_equal(lists[feature], expected)
        part = slice(lists.starts[feature], lists.starts[feature + 1])
        np.testing.assert_array_equal(lists.values[part], text.fired[expected, feature])
        dropped += (text.fired[:, feature] > 0).sum() - len(expected)
    assert dropped > 50
    assert lists.fires[5] == 0
    assert lists.fires.tolist() == [len(lists[feature]) for feature in range(6)]
    np.testing.assert_array_equal(lists.counted, text.counted.ravel())
    np.testing.assert_array_equal(lists.documents, text.rows.documents.ravel())


def test_exactly_a_tenth_is_not_above() -> None:
    text = planted(rows=4, features=2)
    dense = np.full_like(text.dense, np.float32(0.5))
    lists, _ = collect(Planted(text.rows, dense, text.counted, 11), np.array([5, 4.9], np.float32), 2)
    assert lists.fires.tolist() == [0, text.counted.sum()]


def test_values_are_kept_only_where_they_are_asked_for() -> None:
    text = planted(rows=4)
    assert collect(text, text.fired.max(0), 2)[0].values is None


def test_too_many_firings_end_the_listening_and_the_share_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firing_collector, "_MOST_FIRINGS", 100)
    text = planted()
    lists, _ = collect(text, np.zeros(6, np.float32), 3)
    per_batch = (text.fired.reshape(10, -1) > 0).sum(1)
    batches = int(np.argmax(np.cumsum(per_batch) > 100)) + 1
    assert 1 <= batches < 10
    tokens_read = batches * 3 * text.context
    assert lists.read == pytest.approx(batches / 10)
    assert lists.tokens_read == tokens_read
    for feature in range(6):
        np.testing.assert_array_equal(lists[feature], np.flatnonzero(text.fired[:tokens_read, feature] > 0))
    # All tokens are told, whether they were listened to or not.
    np.testing.assert_array_equal(lists.counted, text.counted.ravel())


def test_no_text_gives_no_firings() -> None:
    lists = FiringCollector(planted().source, np.ones(6, np.float32)).lists()
    assert len(lists) == 6
    assert not lists.fires.any()
    assert lists.read == 1
    assert not len(lists.counted)
