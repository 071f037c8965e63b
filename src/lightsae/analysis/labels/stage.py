"""Offline labels for several populations of features at once: learned, worded, tested on unseen documents.

Axes: F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.labels.gate import Gate
from lightsae.analysis.labels.patterns import PatternKeys
from lightsae.analysis.labels.rules import PatternPlaces, PatternTable, Rule, learn_rules
from lightsae.analysis.labels.scoring import Scores
from lightsae.analysis.labels.token_scores import shuffled_scores, token_scores
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
        floor: Share of the features with a rule that another one's rule would have passed for; None below two.
        scored: Firings on the scoring documents.
    """

    words: list[str]
    rules: list[Rule]
    scores: list[Scores]
    tiers: list[str]
    floor: float | None
    scored: FiringLists

    @property
    def labelled_share(self) -> float:
        """Share of the living features with a label that passed."""
        alive = sum(tier != "dead" for tier in self.tiers)
        return sum(tier in ("high", "medium") for tier in self.tiers) / max(1, alive)


def label_offline(
    sources: Mapping[str, FeatureSource],
    maxima: Mapping[str, NDArray[np.float32]],
    fires: Mapping[str, NDArray[np.int64]],
    reader: ActivationReader,
    texts: Texts,
    vocabulary: Sequence[str],
    gate: Gate,
    seed: int,
    progress: Progress,
) -> dict[str, OfflineLabels]:
    """Label every feature of every population; one pass of the language model over each text serves all.

    Args:
        sources: Populations by name.
        maxima: (F,) of each: the largest activations on the text of the contexts.
        fires: (F,) of each: firings on the text of the contexts; 0 is dead.
        reader: Reads the text.
        texts: Where labels are learned, chosen and tested.
        vocabulary: (V,) what each token says.
        gate: What a label has to reach.
        seed: Of the shuffled floor.
        progress: Told of every batch and feature.
    """
    mining = texts.mining if len(texts.mining) else texts.contexts
    told = {"learn": mining, "choose": texts.contexts, "test": texts.scores}
    lists = {use: _read_lists(sources, maxima, reader, rows, f"labels: {use}", progress) for use, rows in told.items()}
    keys = {use: PatternKeys(rows.tokens, vocabulary) for use, rows in told.items()}
    table = PatternTable(keys["learn"], lists["learn"][next(iter(sources))].counted)
    counted = {use: of[next(iter(sources))].counted for use, of in lists.items()}
    choosing = PatternPlaces(table, keys["choose"], counted["choose"])
    testing = PatternPlaces(table, keys["test"], counted["test"])
    labels = {}
    for name, source in sources.items():
        with progress.stage(f"labels: {name}", source.n_features) as done:
            rules = learn_rules(table, lists["learn"][name], choosing, lists["choose"][name], done)
        scored = lists["test"][name]
        scores = token_scores(rules, testing, scored)
        tiers = [gate.tier(score, int(n)) for score, n in zip(scores, fires[name], strict=True)]
        with_rule = np.flatnonzero([bool(rule.patterns) for rule in rules])
        shuffled = shuffled_scores(rules, testing, scored, with_rule, seed)
        labels[name] = OfflineLabels(
            words=[in_words([keys["learn"].pattern(*p) for p in rule.patterns], vocabulary) for rule in rules],
            rules=rules,
            scores=scores,
            tiers=tiers,
            floor=float(np.mean([gate.passed(score) for score in shuffled])) if shuffled else None,
            scored=scored,
        )
    return labels


def _read_lists(
    sources: Mapping[str, FeatureSource],
    maxima: Mapping[str, NDArray[np.float32]],
    reader: ActivationReader,
    rows: TextRows,
    what: str,
    progress: Progress,
) -> dict[str, FiringLists]:
    collectors = [FiringCollector(source, maxima[name]) for name, source in sources.items()]
    return dict(zip(sources, read_firing_lists(collectors, reader, rows, what, progress), strict=True))
