"""Rules: lists of patterns, and where they hold in a text.

Axes: F features, T tokens of a text.

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


class Choosing:
    """The text on which rules are chosen, for one feature after the other.

    Args:
        places: Where patterns hold in it.
        fires: Firings on it.
    """

    def __init__(self, places: PatternPlaces, fires: FiringLists) -> None:
        self.places, self.fires = places, fires
        self._true = np.zeros(places.tokens, np.bool_)
        self._hit = np.zeros(places.tokens, np.bool_)
        self._feature = -1

    def look_at(self, feature: int) -> None:
        """Take a feature: what follows is about its firings."""
        if self._feature >= 0:
            self._true[self.fires[self._feature]] = False
        self._true[self.fires[feature]] = True
        self._feature = feature

    def lower_of_both(self, patterns: Iterable[PatternKey]) -> float:
        """Return the lower of precision and recall of a rule of these patterns; a label has to have both."""
        return [0.0, *self.reached(patterns)][-1]

    def reached(self, patterns: Iterable[PatternKey]) -> list[float]:
        """Return the same of the first one, of the first two, and so on."""
        yes, right, lower, marked = 0, 0, [], []
        positives = max(1, len(self.fires[self._feature]))
        for kind, key in patterns:
            holds_at = self.places.of(kind, key)
            holds_at = holds_at[: np.searchsorted(holds_at, self.fires.tokens_read)]
            new = holds_at[~self._hit[holds_at]]
            self._hit[new] = True
            marked.append(new)
            yes, right = yes + len(new), right + int(np.count_nonzero(self._true[new]))
            lower.append(min(right / max(1, yes), right / positives))
        for places in marked:
            self._hit[places] = False
        return lower
