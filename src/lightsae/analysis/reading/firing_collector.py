"""Gathers firing lists, batch by batch.

Axes: F features, T tokens of the text (rows * S), N firings.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lightsae.activations.batch import ActivationBatch
from lightsae.analysis.reading.features import FeatureSource, firings_above
from lightsae.analysis.reading.firing_lists import FiringLists
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import TextRows
from lightsae.metrics.conventions import FIRES_ABOVE
from lightsae.progress import Progress
from lightsae.sae.sparse_ops import SparseLatents

# Firings that are kept of a population. Raw neurons fire so often that a part of the text tells all.
_MOST_FIRINGS = 40_000_000


class FiringCollector:
    """Gathers the firing lists of a text, batch by batch: 8 bytes per firing, 12 with values.

    Args:
        source: The features.
        maximum: (F,) each feature's maximum, as it was found on other text.
        keep_values: Keep the activations too.
    """

    def __init__(self, source: FeatureSource, maximum: NDArray[np.float32], *, keep_values: bool = False) -> None:
        self.source, self.keep_values = source, keep_values
        self.least = torch.from_numpy(FIRES_ABOVE * maximum)
        self._tokens: list[NDArray[np.int32]] = []
        self._features: list[NDArray[np.int32]] = []
        self._values: list[NDArray[np.float32]] = []
        self._counted: list[NDArray[np.bool_]] = []
        self._documents: list[NDArray[np.int64]] = []
        self._tokens_met = self._kept = self._tokens_read = 0

    @torch.no_grad()
    def update(self, batch: ActivationBatch, counted: NDArray[np.bool_], latents: SparseLatents | None = None) -> None:
        """Take in a batch of whole rows.

        Args:
            batch: What the features read.
            counted: (rows, S) which tokens count.
            latents: The features of these tokens, if the caller has computed them; None: the source does.
        """
        self._counted.append(counted.ravel())
        self._documents.append(batch.documents.cpu().numpy())
        start, self._tokens_met = self._tokens_met, self._tokens_met + counted.size
        if self._kept > _MOST_FIRINGS:
            return
        self.least = self.least.to(next(iter(batch.activations.values())).device)
        if latents is None:
            firings = self.source.above(batch.activations, self.least)
        else:
            firings = firings_above(latents, self.least)
        tokens, features, values = (part.cpu().numpy() for part in firings)
        kept = counted.ravel()[tokens]
        self._tokens.append((tokens[kept] + start).astype(np.int32))
        self._features.append(features[kept].astype(np.int32))
        if self.keep_values:
            self._values.append(values[kept].astype(np.float32))
        self._kept += int(kept.sum())
        self._tokens_read = self._tokens_met

    def lists(self) -> FiringLists:
        """Return what was gathered, by feature."""
        features = _joined(self._features, np.int32)
        order = np.argsort(features, kind="stable")
        starts = np.searchsorted(features[order], np.arange(self.source.n_features + 1))
        counted, documents = _joined(self._counted, np.bool_), _joined(self._documents, np.int64)
        values = _joined(self._values, np.float32)[order] if self.keep_values else None
        tokens = _joined(self._tokens, np.int32)[order]
        return FiringLists(tokens, starts, counted, self._tokens_read, values, documents)


def read_firing_lists(
    collectors: Sequence[FiringCollector], reader: ActivationReader, rows: TextRows, stage: str, progress: Progress
) -> list[FiringLists]:
    """Return the firing lists of several sources over a text; one pass of the language model serves all."""
    for batch, counted in reader.read(rows, stage, progress):
        for collector in collectors:
            collector.update(batch, counted)
    return [collector.lists() for collector in collectors]


def _joined(parts: Iterable[NDArray], dtype: type) -> NDArray:  # type: ignore[type-arg]
    parts = list(parts)
    return np.concatenate(parts) if parts else np.empty(0, dtype)
