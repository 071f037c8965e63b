"""Scores of a label: from yes/no verdicts to balanced accuracy, precision and recall, with 95% intervals.

Axes:    n trials, arrays of any one shape.
Source:  interval: `metrics.intervals`. Detection and fuzzing: Paulo et al. 2024, arXiv:2410.13928.

A verdict is `True`, `False`, or `None`: no usable answer came; those are counted, and part of no score. A judge that
always says no has balanced accuracy 0.5 and no precision. Precision depends on how many negatives there are for each
positive, so compare it only where that is the same: `tokens` scores have the natural frequency, a judge's about 1 to 1.
Verdicts on tokens or windows of one document are alike; the intervals go by documents.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from lightsae.analysis.labels.rules import PatternPlaces, Rule
from lightsae.analysis.reading.firing_lists import FiringLists
from lightsae.metrics.intervals import share_of, wilson
from lightsae.randomness import keyed_generator

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Scores:
    """How yes/no verdicts agree with the truth.

    Attributes:
        true_positives, false_negatives: Verdicts on what fires: yes, no.
        false_positives, true_negatives: Verdicts on what does not.
        unanswered: Questions without a usable answer; part of no score.
        yes_effective, positives_effective: Independent verdicts that those with a yes, and those on what fires, tell as
            much as (`Share.trusted`); None: they are independent.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    unanswered: int = 0
    yes_effective: float | None = None
    positives_effective: float | None = None

    @classmethod
    def of(
        cls, truths: Sequence[bool], verdicts: Sequence[bool | None], documents: Sequence[int] | None = None
    ) -> "Scores":
        """Count verdicts against the truth, one of each a question, and the document that it is about if known."""
        pairs = list(zip(truths, verdicts, strict=True))
        scores = cls(
            true_positives=pairs.count((True, True)),
            false_positives=pairs.count((False, True)),
            false_negatives=pairs.count((True, False)),
            true_negatives=pairs.count((False, False)),
            unanswered=sum(verdict is None for verdict in verdicts),
        )
        if documents is None:
            return scores
        of, right = np.asarray(documents), np.array([pair == (True, True) for pair in pairs], bool)
        yes = np.array([verdict is True for verdict in verdicts], bool)
        fires = np.array([truth and verdict is not None for truth, verdict in pairs], bool)
        return scores.of_documents(right[yes], of[yes], right[fires], of[fires])

    def of_documents(
        self,
        right: NDArray[np.bool_],
        documents_of_yes: NDArray[np.int64],
        found: NDArray[np.bool_],
        documents_of_positives: NDArray[np.int64],
    ) -> "Scores":
        """Return the same scores, with intervals that go by documents.

        Args:
            right: Of each yes, whether it is right.
            documents_of_yes: The document of each.
            found: Of each verdict on what fires, whether it is a yes.
            documents_of_positives: The document of each.
        """
        yes, positives = share_of(right, documents_of_yes), share_of(found, documents_of_positives)
        return replace(self, yes_effective=float(yes.trusted), positives_effective=float(positives.trusted))

    @property
    def positives(self) -> int:
        """Answered questions about what fires."""
        return self.true_positives + self.false_negatives

    @property
    def negatives(self) -> int:
        """Answered questions about what does not fire."""
        return self.false_positives + self.true_negatives

    @property
    def yes(self) -> int:
        return self.true_positives + self.false_positives

    @property
    def precision(self) -> float | None:
        """Share of the yes-verdicts that are right; None where there is no yes."""
        return self.true_positives / self.yes if self.yes else None

    @property
    def recall(self) -> float | None:
        """Share of what fires that got a yes; None where nothing that fires was judged."""
        return self.true_positives / self.positives if self.positives else None

    @property
    def lower(self) -> float:
        """The lower of precision and recall; one that does not exist counts as 0."""
        return min(self.precision or 0.0, self.recall or 0.0)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where nothing fires and nothing was said to."""
        return 2 * self.true_positives / max(1, self.yes + self.positives)

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the shares right on what fires and on what does not; None where one of them was not judged."""
        if not self.positives or not self.negatives:
            return None
        return (self.true_positives / self.positives + self.true_negatives / self.negatives) / 2

    @property
    def precision_interval(self) -> tuple[float, float]:
        """95% interval; 0 to 1 where there is no yes."""
        return _interval(self.precision, self.yes if self.yes_effective is None else self.yes_effective)

    @property
    def recall_interval(self) -> tuple[float, float]:
        """95% interval; 0 to 1 where nothing that fires was judged."""
        return _interval(self.recall, self.positives if self.positives_effective is None else self.positives_effective)

    def columns(self) -> dict[str, Any]:
        """Return the score columns of `schema.LABELS`; the bounds of a share that does not exist are None."""
        precision_low, precision_high = self.precision_interval if self.yes else (None, None)
        recall_low, recall_high = self.recall_interval if self.positives else (None, None)
        return {
            "positives_tested": self.positives,
            "negatives_tested": self.negatives,
            "balanced_accuracy": self.balanced_accuracy,
            "precision": self.precision,
            "precision_low": precision_low,
            "precision_high": precision_high,
            "recall": self.recall,
            "recall_low": recall_low,
            "recall_high": recall_high,
        }


def _interval(share: float | None, trials: int | float) -> tuple[float, float]:
    low, high = wilson((share or 0.0) * trials, trials)
    return float(low), float(high)


def weakest(scores: Iterable[Scores]) -> Scores:
    """Return the scores with the least of min(precision, recall); a share that does not exist counts as 0.

    A label that is tested against several kinds of negatives is as good as its weakest test.
    """
    return min(scores, key=lambda s: (s.lower, s.balanced_accuracy or 0.0))


def discrimination_scores(
    choices: Sequence[int | None], answers: Sequence[int], options: int, documents: Sequence[int] | None = None
) -> Scores:
    """Score choices of one window out of several.

    The window of the feature is a positive, each of the others a negative, so that recall is the share of right choices
    and a judge that chooses blindly has balanced accuracy 0.5.

    Args:
        choices: What was chosen, from 0; -1 where the judge says that none fits; None where no usable answer came.
        answers: Which one is right.
        options: Windows to choose from, in each trial.
        documents: Of the right window of each trial; None: each is one of its own.
    """
    truths: list[bool] = []
    verdicts: list[bool | None] = []
    asked: list[int] = []
    unanswered = 0
    for choice, answer, document in zip(choices, answers, documents or range(len(answers)), strict=True):
        if choice is None:
            unanswered += 1
            continue
        truths += [i == answer for i in range(options)]
        verdicts += [i == choice for i in range(options)]
        asked += [document] * options
    scores = Scores.of(truths, verdicts, None if documents is None else asked)
    return replace(scores, unanswered=unanswered)


def derangement(count: int, seed: int) -> list[int]:
    """Return a random permutation of 0..count-1 that leaves nothing in its place.

    A cycle through all of them, in random order: one draw, whatever `count` is.

    Raises:
        ValueError: `count` is 1: there is nothing to exchange it with.
    """
    if count == 1:
        raise ValueError("One label cannot be dealt to another feature; a floor needs two or more.")
    order = torch.randperm(count, generator=keyed_generator(seed, "labels/derangement")).tolist()
    dealt = [0] * count
    for feature, other in zip(order, order[1:] + order[:1], strict=True):
        dealt[feature] = other
    return dealt


def shuffled(labels: Mapping[Key, Value], seed: int) -> dict[Key, Value]:
    """Deal the labels to other features: what the same test then gives is its floor.

    No feature gets its own label; one may get an equal one where two features share a label.

    Raises:
        ValueError: There is only one label.
    """
    keys = list(labels)
    return {key: labels[keys[other]] for key, other in zip(keys, derangement(len(keys), seed), strict=True)}


def token_scores(rules: Sequence[Rule], places: PatternPlaces, fires: FiringLists) -> list[Scores]:
    """Return the verdicts of each feature's rule on every counted token.

    Args:
        rules: One per feature.
        places: Where patterns hold in the scoring text.
        fires: Where features fire in it.
    """
    return [_scores(places.of_rule(rule), fires, feature) for feature, rule in enumerate(rules)]


def shuffled_scores(
    rules: Sequence[Rule], places: PatternPlaces, fires: FiringLists, features: NDArray[np.int64], seed: int
) -> list[Scores]:
    """Return the same scores when the rules of some features are dealt among them, none to its own: the floor.

    Args:
        rules: One per feature.
        places: Where patterns hold in the scoring text.
        fires: Where features fire in it.
        features: Whose rules are dealt; two or more, or there is nothing to deal.
        seed: Seed for the dealing.
    """
    if len(features) < 2:
        return []
    dealt = features[derangement(len(features), seed)]
    return [
        _scores(places.of_rule(rules[other]), fires, int(feature))
        for feature, other in zip(features, dealt, strict=True)
    ]


def _scores(yes: NDArray[np.int64], fires: FiringLists, feature: int) -> Scores:
    true, yes = fires[feature], yes[yes < fires.tokens_read]
    is_right, is_found = np.isin(yes, true, assume_unique=True), np.isin(true, yes, assume_unique=True)
    right = int(is_right.sum())
    negatives = int(fires.counted[: fires.tokens_read].sum()) - len(true)
    scores = Scores(right, len(yes) - right, len(true) - right, negatives - (len(yes) - right))
    if fires.documents is None:
        return scores
    return scores.of_documents(is_right, fires.documents[yes], is_found, fires.documents[true])
