"""Learns the rules of a feature: short ones that are its label, and a long one that detects it.

A short rule is searched under its limit: of all sets of so many patterns the search keeps the most promising ones at
each step (a beam), by F1 on the mining text, and the best of what is left is chosen on other documents. A detector is
taken greedily: patterns on which the feature fires mostly, by how many firings each adds.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.labels.patterns import KINDS, N_PARTS
from lightsae.analysis.labels.rules import Choosing, Members, PatternKey, PatternPlaces, PatternTable, Rule
from lightsae.analysis.reading.firing_lists import FiringLists

# Patterns of a label, of which one may be a list of so many tokens; patterns of a detector; and those of the curve.
LABEL_PATTERNS, LIST_TOKENS, DETECTOR_PATTERNS = 3, 5, 64
LIMITS = (1, LABEL_PATTERNS, 8, DETECTOR_PATTERNS)
Rules = dict[int, Rule]

# Of a detector: how often a feature has to fire where a pattern holds (one occurrence more is assumed, on which it did
# not fire); the share of the firings that each has to add (and two of them); what a pattern more has to bring.
RATES = (0.3, 0.45, 0.6)
_LEAST_SHARE, _WORTH = 0.001, 0.0005
# Of a label: the share of the firings that a pattern has to hold at; how often the feature has to fire there, and from
# where on that is sure; patterns tried; sets kept at each step, and those tried on the choosing text; what a pattern
# more, or a thing more that it names, has to bring.
_LEAST_SHARE_OF_LABEL, _LEAST_RATE, _SURE, _TRIED, _BEAM, _CHOSEN_AMONG = 0.01, 0.2, 0.6, 96, 6, 8
_WORTH_OF_PATTERN, _WORTH_OF_PART = 0.01, 0.002
# Firings that the search for a label looks at.
_SAMPLE = 4096


def learn_rules(
    table: PatternTable,
    mining: FiringLists,
    choosing_places: PatternPlaces,
    choosing: FiringLists,
    progress: Callable[[int], None] | None = None,
) -> list[Rules]:
    """Return, of each feature, the best rule of at most so many patterns, by LIMITS; none where nothing tells.

    Args:
        table: Patterns of the mining text.
        mining: Firings on it.
        choosing_places: Where the patterns hold in the choosing text.
        choosing: Firings on that.
        progress: Called with the number of features that are done.
    """
    chooser, nothing = Choosing(choosing_places, choosing), Rule((), ())
    learned = []
    for feature in range(len(mining)):
        rules = dict.fromkeys(LIMITS, nothing)
        if len(mining[feature]) and len(choosing[feature]):
            chooser.look_at(feature)
            members = Members.of(table, mining, feature)
            rules = _short_rules(table, members, chooser) | _long_rules(table, members, chooser)
            # The curve rises: what a shorter rule reaches, a longer one may be.
            reached, best = -1.0, nothing
            for limit in LIMITS:
                if (lower := chooser.lower_of_both(rules[limit].patterns)) > reached:
                    reached, best = lower, rules[limit]
                rules[limit] = best
        learned.append(rules)
        if progress is not None:
            progress(feature + 1)
    return learned


@dataclass(frozen=True)
class _Candidates:
    """Patterns that a label may be made of.

    Attributes:
        keys: (kind, key) of each.
        frames: Which of them read as one list: those of equal number.
        held: (C, n) whether each holds at each firing.
        wrong: (C,) tokens where it holds and the feature does not fire, in firings looked at.
        parts: (C,) things that each names beyond one.
    """

    keys: list[PatternKey]
    frames: list[tuple[str, int]]
    held: NDArray[np.float32]
    wrong: NDArray[np.float64]
    parts: NDArray[np.int64]

    @classmethod
    def of(cls, table: PatternTable, members: Members) -> "_Candidates":
        kinds, numbers, f1, rate = [], [], [], []
        for place, kind in enumerate(KINDS):
            ids, starts, _ = members.by_kind[kind]
            right, everywhere = np.diff(starts), table.counts[kind][ids] / members.scale
            sure = right / (everywhere + 1 / members.scale)
            kept = np.flatnonzero((right >= max(2, _LEAST_SHARE_OF_LABEL * members.firings)) & (sure >= _LEAST_RATE))
            worth = 2 * right / (everywhere + members.firings) - _WORTH_OF_PART * (N_PARTS[kind] - 1)
            kinds.append(np.full(len(kept), place))
            numbers.append(kept)
            f1.append(worth[kept])
            rate.append(sure[kept])
        order = np.argsort(-np.concatenate(f1), kind="stable")
        # The best alone, and the best of the surest, which make a good rule together.
        surest = order[np.concatenate(rate)[order] >= _SURE]
        tried = np.unique(np.concatenate([order[: 2 * _TRIED // 3], surest[: _TRIED // 2]]))
        chosen = [
            (KINDS[kind], int(number))
            for kind, number in zip(np.concatenate(kinds)[tried], np.concatenate(numbers)[tried], strict=True)
        ]
        places = np.arange(members.firings)[:: max(1, members.firings // _SAMPLE)]
        keys, frames, parts = [], [], []
        held, wrong = np.zeros((len(chosen), members.firings), np.float32), np.zeros(len(chosen))
        for number, (kind, i) in enumerate(chosen):
            pattern = members.by_kind[kind][0][i]
            at = members.held(kind, i)
            held[number, at] = 1
            wrong[number] = max(0.0, table.counts[kind][pattern] / members.scale - len(at))
            keys.append((kind, int(table.known[kind][pattern])))
            frames.append((kind, int(table.frames[kind][pattern])))
            parts.append(N_PARTS[kind] - 1)
        share = len(places) / members.firings
        return cls(keys, frames, np.ascontiguousarray(held[:, places]), wrong * share, np.array(parts, np.int64))


@dataclass(frozen=True)
class _Set:
    """Some of the candidates, in the order in which they were taken, and the firings that they leave."""

    taken: tuple[int, ...]
    left: NDArray[np.float32]
    wrong: float
    score: float = 0.0


def _short_rules(table: PatternTable, members: Members, chooser: Choosing) -> Rules:
    """Return the best rules of one pattern, and of as many as a label may have."""
    candidates = _Candidates.of(table, members)
    # Each limit has its own beam: sets of three patterns would crowd lists that count as one out of it.
    return {limit: _chosen(candidates, _sets(candidates, limit), chooser) for limit in (1, LABEL_PATTERNS)}


def _sets(candidates: _Candidates, limit: int) -> list[_Set]:
    """Return the most promising sets of candidates that count as so many patterns at most."""
    firings = candidates.held.shape[1] if candidates.keys else 0
    found: list[_Set] = []
    beam = [_Set((), np.ones(firings, np.float32), 0.0)]
    seen: set[frozenset[int]] = set()
    while beam and candidates.keys:
        following: list[_Set] = []
        gains = candidates.held @ np.stack([one.left for one in beam], 1)
        for column, one in enumerate(beam):
            right = firings - one.left.sum() + gains[:, column]
            wrong = one.wrong + candidates.wrong
            score = 2 * right / (right + wrong + firings) - _WORTH_OF_PART * candidates.parts
            useful = np.flatnonzero(gains[:, column] >= max(2, _LEAST_SHARE_OF_LABEL * firings))
            if limit == 1 and one.taken:
                # What can still join is of the same list.
                frame = candidates.frames[one.taken[0]]
                useful = useful[[candidates.frames[i] == frame for i in useful]]
            for i in useful[np.argsort(-score[useful], kind="stable")][: 2 * _BEAM].tolist():
                taken = (*one.taken, i)
                if frozenset(taken) in seen or score[i] <= one.score:
                    continue
                if _size(candidates, taken) <= limit:
                    seen.add(frozenset(taken))
                    left = one.left * (1 - candidates.held[i])
                    following.append(_Set(taken, left, float(wrong[i]), float(score[i])))
        beam = sorted(following, key=lambda one: -one.score)[:_BEAM]
        found += beam
    return found


def _size(candidates: _Candidates, taken: tuple[int, ...]) -> int:
    """Return how many patterns some count for: the longest list of one frame, of so many tokens, counts as one."""
    frames = [candidates.frames[i] for i in taken]
    longest = max(map(frames.count, frames), default=0)
    return len(taken) - (min(longest, LIST_TOKENS) - 1)


def _chosen(candidates: _Candidates, sets: list[_Set], chooser: Choosing) -> Rule:
    """Return the set that reaches most on the choosing text, as a rule."""
    best, most = Rule((), ()), 0.0
    for one in sorted(sets, key=lambda one: -one.score)[:_CHOSEN_AMONG]:
        size = _size(candidates, one.taken)
        patterns = tuple(candidates.keys[i] for i in one.taken)
        worth = chooser.lower_of_both(patterns) - _WORTH_OF_PATTERN * (size - 1)
        if worth > most:
            left = np.ones(candidates.held.shape[1], np.float32)
            shares = []
            for i in one.taken:
                shares.append(float((left * candidates.held[i]).mean()))
                left = left * (1 - candidates.held[i])
            best, most = Rule(patterns, tuple(shares), size), worth
    return best


def _long_rules(table: PatternTable, members: Members, chooser: Choosing) -> Rules:
    """Return the best rules of many patterns, each of which counts."""
    best = {limit: (Rule((), ()), 0.0) for limit in LIMITS if limit > LABEL_PATTERNS}
    for rate in RATES:
        rule = _cover(table, members, rate)
        reached = chooser.reached(rule.patterns)
        for limit, (_, most) in best.items():
            length, worth = 0, 0.0
            for taken, lower in enumerate(reached[:limit], start=1):
                if lower > worth + _WORTH * (taken - length):
                    length, worth = taken, lower
            if worth > most:
                best[limit] = (Rule(rule.patterns[:length], rule.shares[:length]), worth)
    return {limit: rule for limit, (rule, _) in best.items()}


def _cover(table: PatternTable, members: Members, rate: float) -> Rule:
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
    patterns: list[PatternKey] = []
    shares: list[float] = []
    while heap and len(patterns) < DETECTOR_PATTERNS:
        _, number, i = heapq.heappop(heap)
        kind = KINDS[number]
        held = members.held(kind, i)
        gain = int(left[held].sum())
        # What a pattern adds only falls as others are taken: one that is still the best with its present gain is.
        if heap and gain < -heap[0][0]:
            if gain >= least:
                heapq.heappush(heap, (-gain, number, i))
            continue
        if gain < least:
            continue
        left[held] = False
        patterns.append((kind, int(table.known[kind][members.by_kind[kind][0][i]])))
        shares.append(gain / members.firings)
    return Rule(tuple(patterns), tuple(shares))
