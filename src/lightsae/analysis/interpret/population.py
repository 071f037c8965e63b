"""Features of one kind with all that is found out about them: the latents, the raw neurons, or random directions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightsae.analysis.contexts.statistics import ContextStatistics
from lightsae.analysis.dictionary.card import figures
from lightsae.analysis.effects.stage import Effects
from lightsae.analysis.interpret.tables import make_tables
from lightsae.analysis.labels.stage import OfflineLabels
from lightsae.analysis.reading.features import FeatureSource

SAE, NEURONS, RANDOM = "features", "neurons", "random"


@dataclass
class Population:
    """Features and what each stage found, from the first to the last.

    Attributes:
        name: SAE, NEURONS or RANDOM.
        source: Says where they fire.
        statistics: What was counted and kept on the text of the contexts.
        vocabulary: (V,) what each token says.
        effects: Known after the second stage.
        labels: Known after the third.
    """

    name: str
    source: FeatureSource
    statistics: ContextStatistics
    vocabulary: Sequence[str]
    effects: Effects = field(init=False)
    labels: OfflineLabels = field(init=False)

    @property
    def maximum(self) -> NDArray[np.float32]:
        """(F,) the largest activation of each feature on the text of the contexts."""
        return self.statistics.moments.maximum

    @property
    def fires(self) -> NDArray[np.int64]:
        """(F,) tokens of that text on which each feature fires."""
        return self.statistics.moments.fires

    @cached_property
    def tables(self) -> dict[str, pa.Table]:
        """The four tables of a feature dictionary."""
        return make_tables(self.statistics, self.effects, self.labels, self.vocabulary)

    @property
    def figures(self) -> dict[str, Any]:
        """What the card says of them: counts, shares, medians, the share labelled by the most patterns of a rule."""
        curve = {str(limit): round(share, 4) for limit, share in self.labels.curve.items()}
        return figures(self.tables) | {"labelled_by_patterns": curve}
