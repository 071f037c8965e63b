"""What a rule is worth: each token of unseen documents, at the natural frequency, said to fire or not.

Axes: F features, T tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.labels.rules import PatternPlaces, Rule
from lightsae.analysis.labels.scoring import Scores, derangement
from lightsae.analysis.reading.firing_lists import FiringLists


def token_scores(rules: Sequence[Rule], places: PatternPlaces, fires: FiringLists) -> list[Scores]:
    """Return the verdicts of each feature's rule on every counted token.

    Args:
        rules: One a feature.
        places: Where patterns hold in the scoring text.
        fires: Where features fire in it.
    """
    return [_scores(places.of_rule(rule), fires, feature) for feature, rule in enumerate(rules)]


def shuffled_scores(
    rules: Sequence[Rule], places: PatternPlaces, fires: FiringLists, features: NDArray[np.int64], seed: int
) -> list[Scores]:
    """Return the same scores when the rules of some features are dealt among them, none to its own: the floor.

    Args:
        rules: One a feature.
        places: Where patterns hold in the scoring text.
        fires: Where features fire in it.
        features: Whose rules are dealt; two or more, or there is nothing to deal.
        seed: Of the dealing.
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
    right = len(np.intersect1d(yes, true, assume_unique=True))
    negatives = int(fires.counted[: fires.tokens_read].sum()) - len(true)
    return Scores(right, len(yes) - right, len(true) - right, negatives - (len(yes) - right))
