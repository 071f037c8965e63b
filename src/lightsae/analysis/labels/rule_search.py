"""Searches the rules of a feature on the mining text: its label, of few patterns, and its detector, of many.

Of labels the most promising sets of so many patterns are kept at each step (a beam), by F1. A detector's patterns are
taken greedily: of those on which the feature fires mostly, each time the one that adds most firings.

Axes: n firings looked at, P patterns that hold at one of them, C candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.labels.members import Members
from lightsae.analysis.labels.patterns import KINDS, N_PARTS
from lightsae.analysis.labels.rules import PatternKey, Rule

# The most patterns of a label, of which one may be a list of so many tokens; and of a detector.
LABEL_PATTERNS, LIST_TOKENS, DETECTOR_PATTERNS = 3, 5, 64
# In a label: the share of the firings that a pattern has to hold at; how often the feature has to fire there, and from
# where on that is sure; patterns tried; sets kept at each step; what a thing more that a pattern names has to bring.
_LEAST_SHARE, _LEAST_RATE, _SURE, _TRIED, _BEAM, _WORTH_OF_PART = 0.01, 0.2, 0.6, 96, 6, 0.002
# Firings that are looked at.
_SAMPLE = 4096
_PARTS = np.array([N_PARTS[kind] - 1 for kind in KINDS])
# In a detector: how often the feature has to fire where a pattern holds (one occurrence more is assumed, on which it
# did not fire); the share of the firings that each pattern has to add (and two of them).
_RATES, _LEAST_ADDED = (0.3, 0.45, 0.6), 0.001


@dataclass(frozen=True)
class Candidates:
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
    def of(cls, members: Members) -> "Candidates":
        """Choose the patterns that are tried: the best alone, and the best of the surest, which go well together."""
        right, everywhere, parts = members.right, members.everywhere / members.scale, _PARTS[members.kinds]
        sure = right / (everywhere + 1 / members.scale)
        f1 = 2 * right / (everywhere + members.firings) - _WORTH_OF_PART * parts
        kept = np.flatnonzero((right >= max(2, _LEAST_SHARE * members.firings)) & (sure >= _LEAST_RATE))
        order = kept[np.argsort(-f1[kept], kind="stable")]
        surest = order[sure[order] >= _SURE]
        tried = np.unique(np.concatenate([order[: 2 * _TRIED // 3], surest[: _TRIED // 2]]))
        sample = members.at[:, :: max(1, members.firings // _SAMPLE)]
        held = (sample[members.kinds[tried]] == tried[:, None]).astype(np.float32)
        wrong = np.maximum(0.0, everywhere[tried] - right[tried]) * sample.shape[1] / members.firings
        return cls(
            keys=[members.key(i) for i in tried.tolist()],
            frames=[members.frame(i) for i in tried.tolist()],
            held=held,
            wrong=wrong,
            parts=parts[tried],
        )

    def size(self, taken: tuple[int, ...]) -> int:
        """Return how many patterns some count for: the longest list of one frame, of so many tokens, counts as one."""
        frames = [self.frames[i] for i in taken]
        longest = max(map(frames.count, frames), default=0)
        return len(taken) - (min(longest, LIST_TOKENS) - 1)

    def rule(self, taken: tuple[int, ...]) -> Rule:
        """Return some of them as a rule."""
        left, shares = np.ones(self.held.shape[1], np.float32), []
        for i in taken:
            shares.append(float((left * self.held[i]).mean()))
            left = left * (1 - self.held[i])
        return Rule(tuple(self.keys[i] for i in taken), tuple(shares), self.size(taken))


@dataclass(frozen=True)
class _Set:
    """Some of the candidates, in the order in which they were taken, and the firings that they leave."""

    taken: tuple[int, ...]
    left: NDArray[np.float32]
    wrong: float
    score: float = 0.0


def promising(candidates: Candidates, limit: int) -> list[tuple[int, ...]]:
    """Return sets of candidates that count as so many patterns at most, the most promising first."""
    firings = candidates.held.shape[1]
    found: list[tuple[float, tuple[int, ...]]] = []
    beam = [_Set((), np.ones(firings, np.float32), 0.0)] if candidates.keys else []
    seen: set[frozenset[int]] = set()
    while beam:
        gains = candidates.held @ np.stack([one.left for one in beam], 1)
        following: list[tuple[float, float, _Set, int]] = []
        for column, one in enumerate(beam):
            right = firings - one.left.sum() + gains[:, column]
            wrong = one.wrong + candidates.wrong
            score = 2 * right / (right + wrong + firings) - _WORTH_OF_PART * candidates.parts
            useful = (gains[:, column] >= max(2, _LEAST_SHARE * firings)) & (score > one.score)
            joining = np.flatnonzero(useful)
            if limit == 1 and one.taken:
                # What can still join is of the same list.
                frame = candidates.frames[one.taken[0]]
                joining = joining[[candidates.frames[i] == frame for i in joining]]
            for i in joining[np.argsort(-score[joining], kind="stable")][: 2 * _BEAM].tolist():
                together = frozenset((*one.taken, i))
                if together not in seen and candidates.size((*one.taken, i)) <= limit:
                    seen.add(together)
                    following.append((float(score[i]), float(wrong[i]), one, i))
        following = sorted(following, key=lambda step: -step[0])[:_BEAM]
        beam = [
            _Set((*one.taken, i), one.left * (1 - candidates.held[i]), wrong, score)
            for score, wrong, one, i in following
        ]
        found += [(one.score, one.taken) for one in beam]
    return [taken for _, taken in sorted(found, key=lambda one: -one[0])]


def covers(members: Members) -> Iterator[Rule]:
    """Yield the rule that each of some demands on the patterns leads to: until no pattern adds enough."""
    least = max(2, _LEAST_ADDED * members.firings)
    fires_there = members.right * members.scale / (members.everywhere + 1)
    candidates = np.flatnonzero((fires_there >= min(_RATES)) & (members.right >= least))
    # Where a firing is covered, the candidates that hold at it have one less to add. All others share the last place.
    slots = np.full(len(members.right), len(candidates))
    slots[candidates] = np.arange(len(candidates))
    held = slots[members.at.T]
    for rate in _RATES:
        gains = np.where(fires_there[candidates] >= rate, members.right[candidates], 0)
        gains, left = np.append(gains, 0), np.ones(members.firings, np.bool_)
        patterns: list[PatternKey] = []
        shares: list[float] = []
        while len(patterns) < DETECTOR_PATTERNS:
            best = int(gains[:-1].argmax()) if len(candidates) else -1
            if best < 0 or gains[best] < least:
                break
            pattern = int(candidates[best])
            new = np.flatnonzero(left & (members.at[members.kinds[pattern]] == pattern))
            left[new] = False
            gains -= np.bincount(held[new].ravel(), minlength=len(gains))
            patterns.append(members.key(pattern))
            shares.append(len(new) / members.firings)
        yield Rule(tuple(patterns), tuple(shares))
