"""Features of one kind with all that is found out about them: the latents, the raw neurons, or a floor."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightsae.analysis.contexts.statistics import ContextStatistics
from lightsae.analysis.dictionary.figures import figures
from lightsae.analysis.effects.stage import Effects
from lightsae.analysis.interpret.tables import make_tables
from lightsae.analysis.labels.stage import OfflineLabels
from lightsae.analysis.reading.calibrated import CalibratedFeatures
from lightsae.analysis.reading.features import FeatureSource

SAE = "features"


@dataclass
class Population:
    """Features and what each stage found, from the first to the last.

    Attributes:
        name: SAE, or one of `floors`.
        source: Says where they fire.
        vocabulary: (V,) what each token says.
        statistics: What was counted and kept on the text of the contexts; None for a floor, which has labels alone.
        effects: Known after the second stage; not of a floor.
        labels: Known after the third.
    """

    name: str
    source: FeatureSource
    vocabulary: Sequence[str]
    statistics: ContextStatistics | None = None
    effects: Effects = field(init=False)
    labels: OfflineLabels = field(init=False)

    @property
    def maximum(self) -> NDArray[np.float32]:
        """(F,) the largest activation of each feature; 0 for calibrated ones, all firings of which count."""
        if isinstance(self.source, CalibratedFeatures):
            return np.zeros(self.source.n_features, np.float32)
        return self.counted.moments.maximum

    @property
    def fires(self) -> NDArray[np.int64]:
        """(F,) tokens on which each feature fires: of the contexts, or, for a floor, some."""
        if self.statistics is None:
            return np.ones(self.source.n_features, np.int64)
        return self.statistics.moments.fires

    @property
    def counted(self) -> ContextStatistics:
        """The statistics of a population that has some."""
        assert self.statistics is not None, f"{self.name} is a floor"
        return self.statistics

    @cached_property
    def tables(self) -> dict[str, pa.Table]:
        """The four tables of a feature dictionary."""
        return make_tables(self.counted, self.effects, self.labels, self.vocabulary)

    @property
    def figures(self) -> dict[str, Any]:
        """What the card says of them: counts, shares, medians, the share labelled by the most patterns of a rule."""
        return figures(self.tables) | {"labelled_by_patterns": self.labels.by_patterns}
