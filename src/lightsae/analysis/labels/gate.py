"""The gate: whether a label may be shown, and how far it is to be trusted.

Tiers:  high        both lower bounds of the 95% intervals clear the gate
        medium      precision and recall themselves clear it
        withheld    they do, but no more labels pass than those of floors: see `withheld`
        unlabelled  they do not; the interface shows no label
        rare        fewer positives were tested than it takes to know
        dead        the feature never fires
"""

from dataclasses import dataclass

from lightsae.analysis.dictionary.schema import SHOWN_TIERS, TIERS
from lightsae.analysis.labels.scoring import Scores
from lightsae.errors import ConfigError

HIGH, MEDIUM, WITHHELD, UNLABELLED, RARE, DEAD = TIERS


@dataclass(frozen=True)
class Gate:
    """What a label has to reach on held-out documents.

    Attributes:
        precision: Least share of what the label picks that has to be right, 0 to 1.
        recall: Least share of the firings that the label has to pick, 0 to 1.
        min_positives: Positives that have to be tested; with fewer, nothing is known.

    Raises:
        ConfigError: A value is out of its range.
    """

    precision: float = 0.7
    recall: float = 0.7
    min_positives: int = 10

    def __post_init__(self) -> None:
        for name in ("precision", "recall"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ConfigError(f"gate.{name}", value, "it must lie above 0 and up to 1")
        if self.min_positives < 1:
            raise ConfigError("gate.min_positives", self.min_positives, "it must be at least 1")

    def passed(self, scores: Scores) -> bool:
        """Return whether a label with these scores may be shown."""
        return self.tier(scores) in SHOWN_TIERS

    def tier(self, scores: Scores, fires: int = 1) -> str:
        """Return the tier of a feature whose label has these scores.

        Args:
            scores: Of its label, or of none at all: `Scores(0, 0, positives, 0)`.
            fires: How often the feature fires at all; 0 makes it dead.
        """
        if fires == 0:
            return DEAD
        if scores.positives < self.min_positives:
            return RARE
        if scores.precision is None or scores.recall is None:
            return UNLABELLED
        if scores.precision_interval[0] >= self.precision and scores.recall_interval[0] >= self.recall:
            return HIGH
        return MEDIUM if scores.precision >= self.precision and scores.recall >= self.recall else UNLABELLED


def withheld(tier: str) -> str:
    """Return the tier where labels pass no more often than those of floors."""
    return WITHHELD if tier in SHOWN_TIERS else tier
