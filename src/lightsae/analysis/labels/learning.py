"""Learns the rules of a feature: short ones that are its label, and a long one that detects it.

Both are searched on one text (`rule_search`), and what was found is chosen from on other documents.
"""

from collections.abc import Callable

import joblib

from lightsae.analysis.labels.members import Members
from lightsae.analysis.labels.rule_search import DETECTOR_PATTERNS, LABEL_PATTERNS, Candidates, covers, promising
from lightsae.analysis.labels.rules import Choosing, PatternPlaces, PatternTable, Rule
from lightsae.analysis.reading.firing_lists import FiringLists

# The most patterns of the rules of the curve.
LIMITS = (1, LABEL_PATTERNS, 8, DETECTOR_PATTERNS)
Rules = dict[int, Rule]

# Sets that are tried on the choosing text; what a pattern more has to bring, in a label and in a detector.
_CHOSEN_AMONG, _WORTH_IN_LABEL, _WORTH_IN_DETECTOR = 8, 0.01, 0.0005
# A process takes seconds to start and as much memory as torch: features that are worth one, the most processes, and
# features that one learns in a go.
_WORTH_A_PROCESS, _MOST_PROCESSES, _AT_ONCE = 256, 8, 32


def learn_rules(
    table: PatternTable,
    mining: FiringLists,
    choosing_places: PatternPlaces,
    choosing: FiringLists,
    progress: Callable[[int], None] | None = None,
    processes: int | None = None,
) -> list[Rules]:
    """Return, of each feature, the best rule of at most so many patterns, by LIMITS; none where nothing tells.

    Args:
        table: Patterns of the mining text.
        mining: Firings on it.
        choosing_places: Where the patterns hold in the choosing text.
        choosing: Firings on that.
        progress: Called with the number of features that are done.
        processes: That share the features; None: one a processor core, if there are features enough.
    """
    if processes is None:
        processes = min(joblib.cpu_count(), _MOST_PROCESSES, max(1, len(mining) // _WORTH_A_PROCESS))
    parts = [range(start, min(start + _AT_ONCE, len(mining))) for start in range(0, len(mining), _AT_ONCE)]
    inputs = table, mining, choosing_places, choosing
    learned: list[Rules] = []
    shared = joblib.Parallel(processes, return_as="generator")
    for rules in shared(joblib.delayed(_learn_some)(*inputs, part) for part in parts):
        learned += rules
        if progress is not None:
            progress(len(learned))
    return learned


def _learn_some(
    table: PatternTable, mining: FiringLists, choosing_places: PatternPlaces, choosing: FiringLists, part: range
) -> list[Rules]:
    chooser, nothing = Choosing(choosing_places, choosing), Rule((), ())
    learned = []
    for feature in part:
        rules = dict.fromkeys(LIMITS, nothing)
        if len(mining[feature]) and len(choosing[feature]):
            chooser.look_at(feature)
            members = Members.of(table, mining, feature)
            rules = _short_rules(members, chooser) | _long_rules(members, chooser)
            # The curve rises: what a shorter rule reaches, a longer one may be.
            reached, best = -1.0, nothing
            for limit in LIMITS:
                if (lower := chooser.lower_of_both(rules[limit].patterns)) > reached:
                    reached, best = lower, rules[limit]
                rules[limit] = best
        learned.append(rules)
    return learned


def _short_rules(members: Members, chooser: Choosing) -> Rules:
    """Return the best rules of one pattern, and of as many as a label may have."""
    candidates = Candidates.of(members)
    # Each limit has its own search: sets of three patterns would crowd lists that count as one out of it.
    return {limit: _chosen(candidates, promising(candidates, limit), chooser) for limit in (1, LABEL_PATTERNS)}


def _chosen(candidates: Candidates, sets: list[tuple[int, ...]], chooser: Choosing) -> Rule:
    """Return the set that reaches most on the choosing text, as a rule."""
    best, most = Rule((), ()), 0.0
    for taken in sets[:_CHOSEN_AMONG]:
        reached = chooser.lower_of_both(tuple(candidates.keys[i] for i in taken))
        worth = reached - _WORTH_IN_LABEL * (candidates.size(taken) - 1)
        if worth > most:
            best, most = candidates.rule(taken), worth
    return best


def _long_rules(members: Members, chooser: Choosing) -> Rules:
    """Return the best rules of many patterns, each of which counts."""
    best = {limit: (Rule((), ()), 0.0) for limit in LIMITS if limit > LABEL_PATTERNS}
    for rule in covers(members):
        reached = chooser.reached(rule.patterns)
        for limit, (_, most) in best.items():
            length, worth = 0, 0.0
            for taken, lower in enumerate(reached[:limit], start=1):
                if lower > worth + _WORTH_IN_DETECTOR * (taken - length):
                    length, worth = taken, lower
            if worth > most:
                best[limit] = (Rule(rule.patterns[:length], rule.shares[:length]), worth)
    return {limit: rule for limit, (rule, _) in best.items()}
