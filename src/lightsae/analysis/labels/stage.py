"""Offline labels for several populations of features at once: learned, worded, tested on unseen documents.

Axes: F features.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.dictionary.schema import SHOWN_TIERS, UNTESTED_TIERS, tested_and_shown
from lightsae.analysis.labels.gate import Gate
from lightsae.analysis.labels.learning import LIMITS, learn_rules
from lightsae.analysis.labels.patterns import PatternKeys
from lightsae.analysis.labels.rule_search import DETECTOR_PATTERNS, LABEL_PATTERNS
from lightsae.analysis.labels.rules import PatternPlaces, PatternTable, Rule
from lightsae.analysis.labels.scoring import Scores, shuffled_scores, token_scores
from lightsae.analysis.labels.wording import in_short, in_words, names_of
from lightsae.analysis.reading.features import FeatureSource
from lightsae.analysis.reading.firing_collector import FiringCollector, read_firing_lists
from lightsae.analysis.reading.firing_lists import FiringLists
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import TextRows, Texts
from lightsae.progress import Progress


@dataclass(frozen=True)
class OfflineLabels:
    """The labels of one population.

    Attributes:
        words: (F,) what each label says: all of its rule; empty where there is none.
        rules: (F,) the tests behind the words, of at most `LABEL_PATTERNS` patterns.
        scores: (F,) their verdicts on every counted token of the scoring documents.
        tiers: (F,) see `gate`.
        detectors: (F,) the longest rules, which no words say in full.
        detector_words: (F,) their most telling patterns.
        detector_scores: (F,) their verdicts.
        detected: (F,) whether these cleared the gate.
        shuffled: Of the features with a label, whether another one's label would have passed for it; none below two.
        curve: Share of the tested features with a rule that passed, by the most patterns that a rule may have; empty
            where no feature was tested.
        scored: Firings on the scoring documents.
    """

    words: list[str]
    rules: list[Rule]
    scores: list[Scores]
    tiers: list[str]
    detectors: list[Rule]
    detector_words: list[str]
    detector_scores: list[Scores]
    detected: list[bool]
    shuffled: list[bool]
    curve: dict[int, float]
    scored: FiringLists

    @property
    def f1(self) -> NDArray[np.float64]:
        """(n,) F1 of the label of each tested feature, whether it passed or not."""
        both = zip(self.scores, self.tiers, strict=True)
        return np.array([score.f1 for score, tier in both if tier not in UNTESTED_TIERS], np.float64)

    @property
    def by_patterns(self) -> dict[str, float]:
        """`curve` as JSON values."""
        return {str(limit): round(share, 4) for limit, share in self.curve.items()}


@runtime_checkable
class ToLabel(Protocol):
    """Features that are to be labelled."""

    name: str
    source: FeatureSource

    @property
    def maximum(self) -> NDArray[np.float32]:
        """(F,) the largest activations on the text of the contexts."""

    @property
    def fires(self) -> NDArray[np.int64]:
        """(F,) firings on that text; 0 is dead."""


def label_offline(
    populations: Sequence[ToLabel],
    reader: ActivationReader,
    texts: Texts,
    vocabulary: Sequence[str],
    gate: Gate,
    seed: int,
    progress: Progress,
) -> list[OfflineLabels]:
    """Label every feature of every population; one pass of the language model over each text serves all.

    Args:
        populations: Kinds of features, all of the same activations.
        reader: Reads the text.
        texts: Where labels are learned, chosen and tested.
        vocabulary: (V,) what each token says.
        gate: What a label has to reach.
        seed: Seed of the shuffled floor.
        progress: Receives tokens and features that are done.

    Returns:
        The labels of each population.
    """

    def firings(rows: TextRows, stage: str) -> list[FiringLists]:
        collectors = [FiringCollector(population.source, population.maximum) for population in populations]
        return read_firing_lists(collectors, reader, rows, f"labels: {stage}", progress)

    mining = texts.mining if len(texts.mining) else texts.contexts
    mined, chosen, tested = firings(mining, "learn"), firings(texts.contexts, "choose"), firings(texts.scores, "test")
    several = has_several_roles(mining, mined[0].counted)

    def keys(rows: TextRows) -> PatternKeys:
        return PatternKeys(rows.tokens, vocabulary, rows.documents, rows.numbers, rows.roles if several else None)

    mined_keys = keys(mining)
    table = PatternTable(mined_keys, mined[0].counted)
    choosing = PatternPlaces(table, keys(texts.contexts), chosen[0].counted)
    testing = PatternPlaces(table, keys(texts.scores), tested[0].counted)
    names = names_of(vocabulary)
    labels = []
    for population, learn, choose, test in zip(populations, mined, chosen, tested, strict=True):
        with progress.stage(f"labels: {population.name}", population.source.n_features) as report:
            learned = learn_rules(table, learn, choosing, choose, report)
        by_limit = {limit: [rules[limit] for rules in learned] for limit in LIMITS}
        scores = {limit: token_scores(rules, testing, test) for limit, rules in by_limit.items()}
        tiers = {
            limit: [gate.tier(score, int(n)) for score, n in zip(some, population.fires, strict=True)]
            for limit, some in scores.items()
        }
        rules, detectors = by_limit[LABEL_PATTERNS], by_limit[DETECTOR_PATTERNS]
        with_rule = np.flatnonzero([bool(rule.patterns) for rule in rules])
        shuffled = shuffled_scores(rules, testing, test, with_rule, seed)
        labels.append(
            OfflineLabels(
                words=[in_words(mined_keys.patterns(rule.patterns), names) for rule in rules],
                rules=rules,
                scores=scores[LABEL_PATTERNS],
                tiers=tiers[LABEL_PATTERNS],
                detectors=detectors,
                detector_words=[in_short(mined_keys.patterns(rule.patterns), names) for rule in detectors],
                detector_scores=scores[DETECTOR_PATTERNS],
                detected=[tier in SHOWN_TIERS for tier in tiers[DETECTOR_PATTERNS]],
                shuffled=[gate.passed(score) for score in shuffled],
                curve=_curve(tiers),
                scored=test,
            )
        )
    return labels


def has_several_roles(rows: TextRows, counted: NDArray[np.bool_]) -> bool:
    """Return whether the tokens that count, (T,), are of several roles: one that all have tells no feature apart."""
    return rows.roles is not None and len(np.unique(rows.roles.ravel()[counted])) > 1


def _curve(tiers: Mapping[int, Collection[str]]) -> dict[int, float]:
    counts = {limit: tested_and_shown(some) for limit, some in tiers.items()}
    return {limit: shown / tested for limit, (tested, shown) in counts.items() if tested}
