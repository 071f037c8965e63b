"""Searches the detector of a feature: a rule of many patterns, in the order in which they were taken.

Greedily: of the patterns on which the feature fires mostly, each time the one that adds most firings.

Axes: n firings, P patterns that hold at one of them, C candidates.
"""

from collections.abc import Iterator

import numpy as np

from lightsae.analysis.labels.members import Members
from lightsae.analysis.labels.rules import PatternKey, Rule

# The most patterns of a detector.
DETECTOR_PATTERNS = 64
# How often the feature has to fire where a pattern holds (one occurrence more is assumed, on which it did not fire).
_RATES = (0.3, 0.45, 0.6)
# The share of the firings that each pattern has to add (and two of them).
_LEAST_SHARE = 0.001


def covers(members: Members) -> Iterator[Rule]:
    """Yield the rule that each of some demands on the patterns leads to: until no pattern adds enough."""
    least = max(2, _LEAST_SHARE * members.firings)
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
