"""Scores of rules, against verdicts counted token by token."""

from dataclasses import replace

import numpy as np
import pytest

from lightsae.analysis.labels.gate import Gate
from lightsae.analysis.labels.patterns import PatternKeys
from lightsae.analysis.labels.rules import PatternPlaces, PatternTable, Rule
from lightsae.analysis.labels.scoring import Scores, shuffled_scores, token_scores
from lightsae.analysis.reading.firing_lists import FiringLists
from lightsae.metrics.intervals import clustered_share, wilson

TEXTS = [f" w{i}" for i in range(9)]
FEATURES = 7


def rule(*tokens: int) -> Rule:
    return Rule(tuple(("token", token) for token in tokens), (1.0,) * len(tokens))


class Small:
    """A random text with random firings and rules of tokens."""

    def __init__(self, seed: int, rows_read: int = 8) -> None:
        draw = np.random.default_rng(seed)
        self.tokens = draw.integers(0, len(TEXTS), (8, 11)).astype(np.int32)
        self.counted = draw.random(88) < 0.8
        self.tokens_read = rows_read * 11
        self.fires = draw.random((88, FEATURES)) < 0.3
        self.fires[:, -1] = False
        self.fires &= (self.counted & (np.arange(88) < self.tokens_read))[:, None]
        self.rules = [rule(*draw.choice(9, n, replace=False).tolist()) for n in (1, 2, 3, 0, 9, 4, 2)]
        keys = PatternKeys(self.tokens, TEXTS)
        self.places = PatternPlaces(PatternTable(keys, self.counted), keys, self.counted)
        places = [np.flatnonzero(column) for column in self.fires.T]
        starts = np.cumsum([0, *map(len, places)])
        self.lists = FiringLists(np.concatenate(places).astype(np.int32), starts, self.counted, self.tokens_read)

    def expected(self, rule: Rule, feature: int) -> Scores:
        found = [0, 0, 0, 0]
        named = {key for _, key in rule.patterns}
        for place, token in enumerate(self.tokens.ravel().tolist()):
            if self.counted[place] and place < self.tokens_read:
                said, true = token in named, bool(self.fires[place, feature])
                found[{(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}[said, true]] += 1
        return Scores(*found)


@pytest.mark.parametrize("rows_read", [8, 5])
@pytest.mark.parametrize("seed", range(5))
def test_every_counted_token_is_a_verdict(seed: int, rows_read: int) -> None:
    small = Small(seed, rows_read)
    found = token_scores(small.rules, small.places, small.lists)
    assert found == [small.expected(rule, feature) for feature, rule in enumerate(small.rules)]
    for score in found:
        assert score.positives + score.negatives == small.counted[: small.tokens_read].sum()


def test_precision_and_recall_of_one_that_can_be_counted_by_hand() -> None:
    small = Small(0)
    token = 4
    here = (small.tokens.ravel() == token) & small.counted
    half = here.copy()
    half[np.flatnonzero(here)[::2]] = False
    lists = FiringLists(np.flatnonzero(half).astype(np.int32), np.array([0, half.sum()]), small.counted, 88)
    (score,) = token_scores([rule(token)], small.places, lists)
    assert score.recall == 1
    assert score.precision == half.sum() / here.sum()
    assert score.precision_interval == wilson(int(half.sum()), int(here.sum()))
    # The same firings in four documents of two rows each: the intervals go by documents.
    documents = np.repeat(np.arange(4), 22)
    (score,) = token_scores([rule(token)], small.places, replace(lists, documents=documents))
    counts = (np.bincount(documents[tokens], minlength=4) for tokens in (half, here))
    assert np.allclose(score.precision_interval, clustered_share(*counts).interval(), rtol=1e-9)
    assert score.positives_effective == pytest.approx(half.sum() ** 2 / (np.bincount(documents[half]) ** 2).sum())
    (nothing,) = token_scores([rule()], small.places, lists)
    assert (nothing.precision, nothing.recall) == (None, 0)
    assert not Gate(min_positives=1).passed(nothing)


def test_the_floor_deals_each_rule_to_another_feature() -> None:
    small = Small(1)
    chosen = np.array([0, 1, 2, 4, 5])
    found = shuffled_scores(small.rules, small.places, small.lists, chosen, seed=3)
    assert len(found) == len(chosen)
    dealt = []
    for feature, score in zip(chosen.tolist(), found, strict=True):
        donors = [other for other in chosen.tolist() if small.expected(small.rules[other], feature) == score]
        assert donors
        assert feature not in donors
        dealt += donors
    assert sorted(dealt) == chosen.tolist()
    assert found == shuffled_scores(small.rules, small.places, small.lists, chosen, seed=3)


@pytest.mark.parametrize("chosen", [[], [2]])
def test_one_rule_has_no_floor(chosen: list[int]) -> None:
    small = Small(2)
    assert shuffled_scores(small.rules, small.places, small.lists, np.array(chosen, np.int64), seed=0) == []
