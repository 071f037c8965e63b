from itertools import pairwise

import numpy as np
import pytest

from helpers.planted_firings import Planted, planted
from lightsae.analysis.contexts import cofiring
from lightsae.analysis.contexts.cofiring import Cofiring, correlation


def related(rows: int = 40) -> Planted:
    """Feature 1 fires with 0, mostly; 3 with 2, sometimes; the others as they like."""
    text = planted(rows=rows, features=8)
    draw = np.random.default_rng(4)
    dense = text.dense.copy()
    dense[:, 1] = np.where(draw.random(len(dense)) < 0.9, dense[:, 0], dense[:, 1])
    dense[:, 3] = np.where(draw.random(len(dense)) < 0.4, dense[:, 2], dense[:, 3])
    return Planted(text.rows, dense, text.counted, text.vocabulary)


def counted(text: Planted, rows_at_once: int, candidates: int = 7) -> Cofiring:
    found = Cofiring(text.dense.shape[1], text.rows.tokens.size, candidates)
    for firings in text.firings(rows_at_once):
        found.update(firings)
    return found


@pytest.mark.parametrize("rows_at_once", [1, 6, 1000])
def test_counts_and_correlations_equal_brute_force(rows_at_once: int) -> None:
    text = related()
    fires = (text.fired > 0)[text.counted.ravel()]
    sources, targets, both, phi = counted(text, rows_at_once).edges(7)
    assert len(sources) > 30
    assert (sources != targets).all()
    for source, target, n, value in zip(sources, targets, both, phi, strict=True):
        assert n == (fires[:, source] & fires[:, target]).sum()
        assert value == pytest.approx(np.corrcoef(fires[:, source], fires[:, target])[0, 1], abs=1e-9)
    for source in range(7):
        mine = phi[sources == source]
        assert all(a >= b for a, b in pairwise(mine.tolist()))
    assert 7 not in sources
    assert 7 not in targets


def test_the_sample_is_a_part_and_the_rest_is_counted_by_bitmaps() -> None:
    text = related()
    found = Cofiring(8, text.rows.tokens.size)
    sampling = []
    for firings in text.firings(2):
        found.update(firings)
        sampling.append(found.sampling)
    assert sampling[0]
    assert not sampling[-1]
    assert sum(sampling) < len(sampling) / 4
    assert found.tokens == text.counted.sum()


def test_the_best_partner_is_found_with_few_candidates() -> None:
    sources, targets, _, phi = counted(related(), 3, candidates=1).edges(3)
    best = dict(zip(sources.tolist(), targets.tolist(), strict=True))
    assert (best[0], best[1], best[2], best[3]) == (1, 0, 3, 2)
    assert phi[sources == 0][0] > 0.7


def test_many_pairs_end_the_sample_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cofiring, "_SAMPLE_PAIRS", 10)
    text = related()
    found = Cofiring(8, 100 * text.rows.tokens.size)
    batches = text.firings(4)
    found.update(next(batches))
    assert not found.sampling
    for firings in batches:
        found.update(firings)
    fires = (text.fired > 0)[text.counted.ravel()]
    sources, targets, both, _ = found.edges(8)
    assert both.tolist() == [
        (fires[:, a] & fires[:, b]).sum() for a, b in zip(sources.tolist(), targets.tolist(), strict=True)
    ]


def test_a_restored_sample_goes_on() -> None:
    text = related()
    whole, first = Cofiring(8, 10**6), Cofiring(8, 10**6)
    for number, firings in enumerate(text.firings(10)):
        whole.update(firings)
        if number == 2:
            again = Cofiring(8, 10**6)
            again.restore_sample(*first.sample)
            again.tokens, again.fires, again.pairs = first.tokens, first.fires, first.pairs
            first = again
        first.update(firings)
    for a, b in zip(whole.edges(5), first.edges(5), strict=True):
        np.testing.assert_array_equal(a, b)


def test_features_that_never_fire_together_have_no_edge() -> None:
    text = planted(rows=10, features=3)
    dense = np.full_like(text.dense, -1)
    dense[::2, 0] = dense[1::2, 1] = 1
    found = counted(Planted(text.rows, dense, text.counted, text.vocabulary), 3)
    assert all(len(part) == 0 for part in found.edges(4))


def test_correlation_of_what_always_or_never_fires_is_0() -> None:
    both, a, b = np.array([50, 0, 100]), np.array([100, 0, 100]), np.array([50, 50, 100])
    np.testing.assert_allclose(correlation(both, a, b, 100), 0, atol=1e-9)
