"""For each feature, the tokens of a text on which it fires: above a share of its maximum.

Axes: F features, T tokens of the text (rows * S), N firings.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lightsae.activations.batch import ActivationBatch
from lightsae.analysis.features import FeatureSource

# «Fires», where labels are learned and tested, means above this share of the feature's maximum.
FIRES_ABOVE = 0.1


@dataclass(frozen=True)
class FiringLists:
    """Which tokens of a text each feature fires on.

    Attributes:
        tokens: (N,) flat token indices, by feature, ascending within each.
        starts: (F + 1,) where each feature's begin.
        counted: (T,) which tokens count; the others fire for no feature.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    counted: NDArray[np.bool_]

    def __getitem__(self, feature: int) -> NDArray[np.int32]:
        return self.tokens[self.starts[feature] : self.starts[feature + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def fires(self) -> NDArray[np.int64]:
        """(F,) tokens on which each feature fires."""
        fires: NDArray[np.int64] = np.diff(self.starts)
        return fires


class FiringCollector:
    """Gathers the firing lists of a text, batch by batch: 8 bytes a firing.

    Args:
        source: The features.
        maximum: (F,) each feature's maximum, as it was found on other text.
    """

    def __init__(self, source: FeatureSource, maximum: NDArray[np.float32]) -> None:
        self.source = source
        self.least = torch.from_numpy(FIRES_ABOVE * maximum)
        self._tokens: list[NDArray[np.int32]] = []
        self._features: list[NDArray[np.int32]] = []
        self._counted: list[NDArray[np.bool_]] = []
        self._read = 0

    @torch.no_grad()
    def update(self, batch: ActivationBatch, counted: NDArray[np.bool_]) -> None:
        latents = self.source.encode(batch.activations)
        self.least = self.least.to(latents.values.device)
        fires = (latents.values > 0) & (latents.values > self.least[latents.indices])
        tokens = latents.pattern.token_of[fires].cpu().numpy()
        features = latents.indices[fires].cpu().numpy()
        here = counted.ravel()[tokens]
        self._tokens.append((tokens[here] + self._read).astype(np.int32))
        self._features.append(features[here].astype(np.int32))
        self._counted.append(counted.ravel())
        self._read += counted.size

    def lists(self) -> FiringLists:
        """Return what was gathered, by feature."""
        features = _joined(self._features, np.int32)
        order = np.argsort(features, kind="stable")
        starts = np.searchsorted(features[order], np.arange(self.source.n_features + 1))
        return FiringLists(_joined(self._tokens, np.int32)[order], starts, _joined(self._counted, np.bool_))


def _joined(parts: Iterable[NDArray], dtype: type) -> NDArray:  # type: ignore[type-arg]
    parts = list(parts)
    return np.concatenate(parts) if parts else np.empty(0, dtype)
