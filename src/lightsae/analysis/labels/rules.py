"""Offline labels: for each feature a short list of patterns of text on which it fires.

Axes: F features, T tokens of a text, P patterns of a text.

A rule fires where one of its patterns holds. Patterns are learned on one text (`mining`): those on which the feature
fires mostly, taken greedily by how many firings each adds. How many of them make the rule, and how sure each has to be,
is chosen on other documents (`choosing`). What the rule is worth is then measured on documents that neither saw:
`scoring.token_scores`. Nothing is drawn at random.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.labels.patterns import KINDS, Keys, PatternKeys
from lightsae.analysis.reading.firing_lists import FiringLists

Ints = NDArray[np.int64]
# How often a feature has to fire where a pattern holds (one occurrence more is assumed, on which it did not fire).
RATES = (0.3, 0.45, 0.6)
MOST_PATTERNS = 64
# Each pattern has to add this share of the firings, and two of them.
_LEAST_SHARE = 0.001
# What a pattern more has to bring.
_WORTH = 0.0005
# Firings that are looked at, of a feature that fires more often.
_MOST_FIRINGS = 20_000


@dataclass(frozen=True)
class Rule:
    """Fires where one of its patterns holds.

    Attributes:
        patterns: (kind, key), the most telling first; see `patterns.PatternKeys`.
        shares: Of each pattern: the share of the feature's firings that it adds to those before it.
    """

    patterns: tuple[tuple[str, int], ...]
    shares: tuple[float, ...]


class PatternTable:
    """The patterns of the mining text: how often each holds, and which hold at a token.

    Args:
        keys: Of the mining text.
        counted: (T,) its tokens that count.
    """

    def __init__(self, keys: PatternKeys, counted: NDArray[np.bool_]) -> None:
        self.known: dict[str, Keys] = {}
        self.ids: dict[str, NDArray[np.int32]] = {}
        self.counts: dict[str, Ints] = {}
        for kind in KINDS:
            self.known[kind], inverse = np.unique(keys.keys[kind], return_inverse=True)
            self.ids[kind] = inverse.astype(np.int32)
            self.counts[kind] = np.bincount(inverse[counted], minlength=len(self.known[kind]))


class PatternPlaces:
    """Where each of the patterns of a table holds in another text.

    Args:
        table: Its patterns.
        keys: Of the other text.
        counted: (T,) its tokens that count; nothing holds at the others.
    """

    def __init__(self, table: PatternTable, keys: PatternKeys, counted: NDArray[np.bool_]) -> None:
        self.table, self.tokens = table, len(counted)
        self._order: dict[str, Ints] = {}
        self._sorted: dict[str, Keys] = {}
        places = np.flatnonzero(counted)
        for kind in KINDS:
            keys_there = keys.keys[kind][places]
            order = np.argsort(keys_there, kind="stable")
            self._order[kind], self._sorted[kind] = places[order], keys_there[order]

    def of(self, kind: str, key: int) -> Ints:
        """Return the tokens at which a pattern holds."""
        start, end = np.searchsorted(self._sorted[kind], (key, key + 1))
        return self._order[kind][start:end]

    def of_rule(self, rule: Rule) -> Ints:
        """Return the tokens at which a rule fires, ascending."""
        if not rule.patterns:
            return np.empty(0, np.int64)
        return np.unique(np.concatenate([self.of(kind, key) for kind, key in rule.patterns]))


def learn_rules(
    table: PatternTable,
    mining: FiringLists,
    choosing_places: PatternPlaces,
    choosing: FiringLists,
    progress: Callable[[int], None] | None = None,
) -> list[Rule]:
    """Return the rule of each feature; one without patterns where nothing tells when it fires.

    Args:
        table: Patterns of the mining text.
        mining: Firings on it.
        choosing_places: Where the patterns hold in the choosing text.
        choosing: Firings on that.
        progress: Called with the number of features that are done.
    """
    hit, true = np.zeros(choosing_places.tokens, bool), np.zeros(choosing_places.tokens, bool)
    rules = []
    for feature in range(len(mining)):
        fires = mining[feature]
        best, most = Rule((), ()), 0.0
        if len(fires):
            true[choosing[feature]] = True
            members = _members(table, fires, mining.read)
            for rate in RATES:
                rule = _cover(table, members, rate)
                length, reached = _best_length(rule, choosing_places, hit, true, choosing, feature)
                if reached > most:
                    best, most = Rule(rule.patterns[:length], rule.shares[:length]), reached
            true[choosing[feature]] = False
        rules.append(best)
        if progress is not None:
            progress(feature + 1)
    return rules


@dataclass(frozen=True)
class _Members:
    """The patterns that hold at a feature's firings: for each kind, which firings each pattern holds at.

    Attributes:
        firings: That are looked at.
        scale: How many of the whole text each of them stands for.
        by_kind: Pattern ids, where each begins, and the firings in their order.
    """

    firings: int
    scale: float
    by_kind: dict[str, tuple[NDArray[np.int32], Ints, Ints]]


def _members(table: PatternTable, fires: NDArray[np.int32], read: float) -> _Members:
    every = max(1, len(fires) // _MOST_FIRINGS)
    looked_at = fires[::every]
    by_kind = {}
    for kind in KINDS:
        ids = table.ids[kind][looked_at]
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        by_kind[kind] = (ordered[starts], np.r_[starts, len(ids)], order)
    return _Members(len(looked_at), len(fires) / read / len(looked_at), by_kind)


def _cover(table: PatternTable, members: _Members, rate: float) -> Rule:
    """Take patterns, each time the one that adds most firings, until all are covered or none adds enough."""
    least = max(2, _LEAST_SHARE * members.firings)
    heap: list[tuple[int, int, int]] = []
    for number, kind in enumerate(KINDS):
        ids, starts, _ = members.by_kind[kind]
        held_at = np.diff(starts)
        sure = (held_at * members.scale >= rate * (table.counts[kind][ids] + 1)) & (held_at >= least)
        heap += [(-int(held_at[i]), number, int(i)) for i in np.flatnonzero(sure)]
    heapq.heapify(heap)
    left = np.ones(members.firings, bool)
    patterns: list[tuple[str, int]] = []
    shares: list[float] = []
    while heap and len(patterns) < MOST_PATTERNS:
        _, number, i = heapq.heappop(heap)
        kind = KINDS[number]
        ids, starts, order = members.by_kind[kind]
        held = order[starts[i] : starts[i + 1]]
        gain = int(left[held].sum())
        # What a pattern adds only falls as others are taken: one that is still the best with its present gain is.
        if heap and gain < -heap[0][0]:
            if gain >= least:
                heapq.heappush(heap, (-gain, number, i))
            continue
        if gain < least:
            continue
        left[held] = False
        patterns.append((kind, int(table.known[kind][ids[i]])))
        shares.append(gain / members.firings)
    return Rule(tuple(patterns), tuple(shares))


def _best_length(
    rule: Rule,
    places: PatternPlaces,
    hit: NDArray[np.bool_],
    true: NDArray[np.bool_],
    choosing: FiringLists,
    feature: int,
) -> tuple[int, float]:
    """Return how many of a rule's patterns to take, and what they reach; `hit` is left as it was found.

    What counts is the lower of precision and recall: a label has to have both.
    """
    positives, touched, yes, right = len(choosing[feature]), [], 0, 0
    best, length = 0.0, 0
    for taken, (kind, key) in enumerate(rule.patterns, start=1):
        holds_at = places.of(kind, key)
        new = holds_at[~hit[holds_at] & (holds_at < choosing.tokens_read)]
        hit[new] = True
        touched.append(new)
        yes += len(new)
        right += int(true[new].sum())
        reached = min(right / max(1, yes), right / max(1, positives))
        if reached > best + _WORTH * (taken - length):
            best, length = reached, taken
    for new in touched:
        hit[new] = False
    return length, best
