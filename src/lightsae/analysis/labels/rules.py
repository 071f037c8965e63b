"""Rules: lists of patterns, and where they hold in a text.

Axes: F features, T tokens of a text, P patterns of a text.

A rule fires where one of its patterns holds. Rules are learned on one text (`mining`), chosen on other documents
(`choosing`), and tested on documents that neither saw: `scoring.token_scores`. Nothing is drawn at random.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.labels.patterns import KINDS, Keys, PatternKeys
from lightsae.analysis.reading.firing_lists import FiringLists

Ints = NDArray[np.int64]
PatternKey = tuple[str, int]
# Firings that are looked at, of a feature that fires more often.
_MOST_FIRINGS = 20_000


@dataclass(frozen=True)
class Rule:
    """Fires where one of its patterns holds.

    Attributes:
        patterns: (kind, key), the most telling first; see `patterns.PatternKeys`.
        shares: Of each pattern: the share of the feature's firings that it adds to those before it.
        size: How many patterns it counts for: one list of a few tokens counts as one. Without it, each counts.
    """

    patterns: tuple[PatternKey, ...]
    shares: tuple[float, ...]
    size: int = -1

    def __post_init__(self) -> None:
        if self.size < 0:
            object.__setattr__(self, "size", len(self.patterns))


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
        self.frames: dict[str, Keys] = {}
        for kind in KINDS:
            known, inverse = np.unique(keys.of(kind), return_inverse=True)
            self.known[kind], self.ids[kind] = known, inverse.astype(np.int32)
            self.counts[kind] = np.bincount(inverse[counted], minlength=len(known))
            self.frames[kind] = keys.frames(kind, known)


class PatternPlaces:
    """Where each of the patterns of a table holds in another text.

    Args:
        table: Its patterns.
        keys: Of the other text.
        counted: (T,) its tokens that count; nothing holds at the others.
    """

    def __init__(self, table: PatternTable, keys: PatternKeys, counted: NDArray[np.bool_]) -> None:
        self.table, self.tokens = table, len(counted)
        self._order: dict[str, NDArray[np.int32]] = {}
        self._sorted: dict[str, Keys] = {}
        places = np.flatnonzero(counted).astype(np.int32)
        for kind in KINDS:
            keys_there = keys.of(kind)[places]
            order = np.argsort(keys_there, kind="stable")
            self._order[kind], self._sorted[kind] = places[order], keys_there[order]

    def of(self, kind: str, key: int) -> NDArray[np.int32]:
        """Return the tokens at which a pattern holds."""
        start, end = np.searchsorted(self._sorted[kind], (key, key + 1))
        return self._order[kind][start:end]

    def of_patterns(self, patterns: Iterable[PatternKey]) -> Ints:
        """Return the tokens at which one of some patterns holds, ascending."""
        held = [self.of(kind, key) for kind, key in patterns]
        return np.unique(np.concatenate(held)).astype(np.int64) if held else np.empty(0, np.int64)

    def of_rule(self, rule: Rule) -> Ints:
        """Return the tokens at which a rule fires, ascending."""
        return self.of_patterns(rule.patterns)


@dataclass(frozen=True)
class Members:
    """The patterns that hold at a feature's firings: for each kind, which firings each pattern holds at.

    Attributes:
        firings: That are looked at.
        scale: How many of the whole text each of them stands for.
        by_kind: Pattern ids, where each begins, and the firings in their order.
    """

    firings: int
    scale: float
    by_kind: dict[str, tuple[NDArray[np.int32], Ints, Ints]]

    @classmethod
    def of(cls, table: PatternTable, fires: FiringLists, feature: int) -> "Members":
        """Gather the patterns at a feature's firings on the mining text; it fires at least once."""
        places = fires[feature]
        looked_at = places[:: max(1, len(places) // _MOST_FIRINGS)]
        by_kind = {}
        for kind in KINDS:
            ids = table.ids[kind][looked_at]
            order = np.argsort(ids, kind="stable")
            ordered = ids[order]
            starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
            ends = np.r_[starts, len(ids)]
            # A key below 0 says that nothing is known: no pattern.
            none = int(table.known[kind][ordered[0]] < 0)
            by_kind[kind] = (ordered[starts][none:], ends[none:], order)
        return cls(len(looked_at), len(places) / fires.read / len(looked_at), by_kind)

    def held(self, kind: str, number: int) -> Ints:
        """Return the firings at which the pattern of that number, in its kind, holds."""
        _, starts, order = self.by_kind[kind]
        return order[starts[number] : starts[number + 1]]


class Choosing:
    """The text on which rules are chosen, for one feature after the other.

    Args:
        places: Where patterns hold in it.
        fires: Firings on it.
    """

    def __init__(self, places: PatternPlaces, fires: FiringLists) -> None:
        self.places, self.fires = places, fires
        self._true = np.zeros(places.tokens, np.bool_)
        self._feature = -1

    def look_at(self, feature: int) -> None:
        """Take a feature: what follows is about its firings."""
        if self._feature >= 0:
            self._true[self.fires[self._feature]] = False
        self._true[self.fires[feature]] = True
        self._feature = feature

    def lower_of_both(self, patterns: Iterable[PatternKey]) -> float:
        """Return the lower of precision and recall of a rule of these patterns; a label has to have both."""
        yes = self.places.of_patterns(patterns)
        yes = yes[yes < self.fires.tokens_read]
        right, positives = int(self._true[yes].sum()), len(self.fires[self._feature])
        return min(right / max(1, len(yes)), right / max(1, positives))

    def reached(self, patterns: Iterable[PatternKey]) -> list[float]:
        """Return the same of the first one, of the first two, and so on."""
        hit, yes, right, lower = np.zeros(self.places.tokens, np.bool_), 0, 0, []
        positives = max(1, len(self.fires[self._feature]))
        for kind, key in patterns:
            holds_at = self.places.of(kind, key)
            new = holds_at[~hit[holds_at] & (holds_at < self.fires.tokens_read)]
            hit[new] = True
            yes, right = yes + len(new), right + int(self._true[new].sum())
            lower.append(min(right / max(1, yes), right / positives))
        return lower
