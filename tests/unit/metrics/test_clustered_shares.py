"""Shares among tokens of documents: by hand, and how often the interval holds the true share in simulated texts.

Axes: R runs, m documents.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lightsae.metrics.intervals import clustered_share, share_of, wilson

Draw = np.random.Generator
RUNS = 10_000
# Shares of the tokens of each document, (R, m), and their mean.
WORLDS: dict[str, tuple[Callable[[Draw, Any], Any], float]] = {
    "in 5% of the documents, on 20% of their tokens": (lambda draw, shape: 0.2 * (draw.random(shape) < 0.05), 0.01),
    "in 5% of the documents, on all their tokens": (lambda draw, shape: 1.0 * (draw.random(shape) < 0.05), 0.05),
    "in 2% of the documents, on 10% of their tokens": (lambda draw, shape: 0.1 * (draw.random(shape) < 0.02), 0.002),
    "in 20% of the documents, on 20% of their tokens": (lambda draw, shape: 0.2 * (draw.random(shape) < 0.2), 0.04),
    "in every document, on 20% of its tokens": (lambda draw, shape: np.full(shape, 0.2), 0.2),
    "in every document, more or less": (lambda draw, shape: draw.beta(2, 8, shape), 0.2),
    "nearly always": (lambda draw, shape: draw.beta(9, 1, shape), 0.9),
    "one token in 3,000, anywhere": (lambda draw, shape: np.full(shape, 1 / 3000), 1 / 3000),
}


def sizes_alike(draw: Draw, shape: tuple[int, int]) -> Any:
    return draw.integers(50, 400, shape)


def sizes_apart(draw: Draw, shape: tuple[int, int]) -> Any:
    return np.clip(draw.lognormal(5, 1, shape), 10, 5000).astype(np.int64)


def coverage(world: str, documents: int, sizes: Callable[..., Any] = sizes_alike) -> float:
    """Return how many of the intervals hold the true share."""
    draw = np.random.default_rng(documents)
    shares, true = WORLDS[world]
    tokens = sizes(draw, (RUNS, documents))
    low, high = clustered_share(draw.binomial(tokens, shares(draw, tokens.shape)), tokens).interval()
    return float(((low <= true) & (true <= high)).mean())


@pytest.mark.parametrize("documents", [20, 40, 100])
@pytest.mark.parametrize("world", WORLDS)
def test_intervals_hold_the_true_share(world: str, documents: int) -> None:
    assert coverage(world, documents) >= 0.93


@pytest.mark.parametrize("documents", [20, 40, 100])
def test_they_do_where_a_few_documents_hold_most_tokens(documents: int) -> None:
    assert coverage("in 5% of the documents, on 20% of their tokens", documents, sizes_apart) >= 0.93


def test_they_are_not_wider_than_they_need_to_be() -> None:
    """Of features in every document, as narrow as Wilson's interval would be with the variance known."""
    draw = np.random.default_rng(0)
    tokens = np.full((200, 100), 200)
    low, high = clustered_share(draw.binomial(tokens, draw.beta(2, 8, tokens.shape)), tokens).interval()
    known = 0.2 * 0.8 / ((0.2 * 0.8 / 11 + 0.2 * (1 - 0.2) * (10 / 11) / 200) / 100)
    narrowest = np.subtract(*wilson(0.2 * known, known)[::-1])
    assert np.median(high - low) == pytest.approx(narrowest, rel=0.1)


def test_by_hand() -> None:
    """Two documents of 10 tokens with 2 and 6: rate 0.4, residuals -2 and 2 over 1 - 1/2, variance 1/2 * 32 / 400.

    Independent tokens would have 0.24 / 19.
    """
    share = clustered_share([2, 6], [10, 10])
    assert (share.times, share.tokens, share.rate) == (8, 20, 0.4)
    assert share.effective == pytest.approx(20 * (0.24 / 19) / (16 / 400))
    # One degree of freedom: t is 12.706.
    assert share.trusted == pytest.approx(share.effective * (1.959964 / 12.706205) ** 2, rel=1e-6)


def test_without_a_hit_documents_count_and_not_tokens() -> None:
    for times in (0, 200):
        share = clustered_share([times] * 20, [200] * 20)
        assert share.effective == share.trusted == 20
        assert share.interval() == wilson(20 * times / 200, 20)
    # A document with half the tokens, and 100 with the rest: 1 / (1/4 + 1/400).
    assert clustered_share([0] * 101, [100] + [1] * 100).effective == pytest.approx(200**2 / (100**2 + 100))


def test_one_document_is_one_observation() -> None:
    share = clustered_share([30], [100])
    assert (share.rate, share.effective) == (0.3, 1)


def test_nothing_is_known_of_no_tokens() -> None:
    share = clustered_share([0, 0], [0, 0])
    assert (share.rate, share.effective, share.interval()) == (0, 0, (0, 1))
    assert share_of(np.zeros(0, bool), np.zeros(0, np.int64)).interval() == (0, 1)


def test_documents_without_tokens_do_not_count() -> None:
    assert clustered_share([1, 0, 5, 0], [10, 0, 10, 0]) == clustered_share([1, 5], [10, 10])


def test_independent_tokens_are_worth_what_they_are() -> None:
    happened = np.random.default_rng(0).random(20_000) < 0.1
    assert share_of(happened, np.arange(20_000)).effective == pytest.approx(20_000, rel=0.01)
    # Never more than there are, however evenly it happens.
    assert clustered_share([5] * 10, [10] * 10).effective == 100


def test_share_of_counts_by_document() -> None:
    documents = np.repeat([7, 3, 9], [4, 2, 5])
    happened = np.array([1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0], bool)
    assert share_of(happened, documents) == clustered_share([1, 2, 2], [2, 4, 5])
