"""Offline labels for several populations of features at once: learned, worded, tested on unseen documents.

Axes: F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.labels.gate import DEAD, SHOWN, Gate
from lightsae.analysis.labels.patterns import PatternKeys
from lightsae.analysis.labels.rules import PatternPlaces, PatternTable, Rule, learn_rules
from lightsae.analysis.labels.scoring import Scores, shuffled_scores, token_scores
from lightsae.analysis.labels.wording import in_words
from lightsae.analysis.reading.features import FeatureSource
from lightsae.analysis.reading.firing_lists import FiringCollector, FiringLists, read_firing_lists
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import TextRows, Texts
from lightsae.progress import Progress


@dataclass(frozen=True)
class OfflineLabels:
    """The labels of one population.

    Attributes:
        words: (F,) what each rule says; empty where there is none.
        rules: (F,) the tests behind the words.
        scores: (F,) verdicts on every counted token of the scoring documents.
        tiers: (F,) see `gate`.
        shuffled: Of the features with a rule, whether another one's rule would have passed for it; none below two.
        scored: Firings on the scoring documents.
    """

    words: list[str]
    rules: list[Rule]
    scores: list[Scores]
    tiers: list[str]
    shuffled: list[bool]
    scored: FiringLists

    @property
    def labelled_share(self) -> float:
        """Share of the living features with a label that passed."""
        alive = sum(tier != DEAD for tier in self.tiers)
        return sum(tier in SHOWN for tier in self.tiers) / max(1, alive)


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

    def places(rows: TextRows, lists: FiringLists) -> PatternPlaces:
        return PatternPlaces(table, PatternKeys(rows.tokens, vocabulary), lists.counted)

    mining = texts.mining if len(texts.mining) else texts.contexts
    mined, chosen, tested = firings(mining, "learn"), firings(texts.contexts, "choose"), firings(texts.scores, "test")
    keys = PatternKeys(mining.tokens, vocabulary)
    table = PatternTable(keys, mined[0].counted)
    choosing, testing = places(texts.contexts, chosen[0]), places(texts.scores, tested[0])
    labels = []
    for population, learn, choose, test in zip(populations, mined, chosen, tested, strict=True):
        with progress.stage(f"labels: {population.name}", population.source.n_features) as report:
            rules = learn_rules(table, learn, choosing, choose, report)
        scores = token_scores(rules, testing, test)
        with_rule = np.flatnonzero([bool(rule.patterns) for rule in rules])
        shuffled = shuffled_scores(rules, testing, test, with_rule, seed)
        labels.append(
            OfflineLabels(
                words=[in_words([keys.pattern(*pattern) for pattern in rule.patterns], vocabulary) for rule in rules],
                rules=rules,
                scores=scores,
                tiers=[gate.tier(score, int(n)) for score, n in zip(scores, population.fires, strict=True)],
                shuffled=[gate.passed(score) for score in shuffled],
                scored=test,
            )
        )
    return labels
