"""The one streaming pass over held-out text: everything that is counted and kept of every feature, at once.

Axes: T tokens of a batch, F features.

Memory follows from the number of features and what is kept of each, never from the amount of text. What has been
counted can be written down at any batch and taken up again: `ContextStatistics.state` and `load`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightsae.activations.batch import ActivationBatch
from lightsae.analysis.contexts.cofiring import Cofiring
from lightsae.analysis.contexts.moments import Moments
from lightsae.analysis.contexts.reservoirs import Reservoir, weighted_scores
from lightsae.analysis.contexts.token_counts import PairCounts, RoleCounts
from lightsae.analysis.reading.features import FeatureSource
from lightsae.analysis.reading.firings import Firings

# Near misses need every feature's pre-activation on every token, as dear as the encoder: a sample of batches.
_NEAR_MISS_EVERY = 16
_TOKENS_KEPT = 64
NearMisses = tuple[NDArray[np.float32], NDArray[np.int64]]
_WAITING = ("waiting_keys", "waiting_counts", "waiting_sizes")
_SAMPLE = ("sample.row", "sample.column", "sample.together")


@dataclass(frozen=True)
class ContextSettings:
    """What is kept of each feature.

    Attributes:
        top: Windows around its strongest firings.
        sampled: Windows sampled by activation, from which strata are cut.
        near_misses: Windows where it nearly fired.
        seed: Seed of the sample.
    """

    top: int = 16
    sampled: int = 24
    near_misses: int = 4
    seed: int = 0


class ContextStatistics:
    """All that the pass gathers of the features of one source.

    Attributes:
        moments: Frequencies, sizes, histograms, documents.
        top, sampled, near_misses: Windows.
        roles: In whose words.
        on, before, after: Tokens on which a feature fires, and beside which it does.
        cofiring: Which features fire together; None if it is not asked for.
        batches: Batches that have been counted.
    """

    def __init__(
        self, source: FeatureSource, vocabulary: int, total_tokens: int, settings: ContextSettings, *, together: bool
    ) -> None:
        self.source, self.settings = source, settings
        n = source.n_features
        self.moments = Moments(n)
        self.roles = RoleCounts(n)
        self.top = Reservoir(n, settings.top)
        self.sampled = Reservoir(n, settings.sampled)
        self.near_misses = Reservoir(n, settings.near_misses)
        self.on, self.before, self.after = (PairCounts(n, vocabulary, _TOKENS_KEPT) for _ in range(3))
        self.cofiring = Cofiring(n, total_tokens) if together else None
        self.batches = self._read_batches = 0

    @torch.no_grad()
    def read(self, batch: ActivationBatch, counted: NDArray[np.bool_]) -> Callable[[], None]:
        """Encode a batch of whole rows, each batch once and in order.

        Args:
            batch: Activations at the sites that the source reads.
            counted: (rows, S) which tokens count.

        Returns:
            What counts its firings: on the host, so that it may run while the next batch is on the device. Batches are
            counted in order, one at a time.
        """
        firings = Firings.of(self.source.encode(batch.activations), batch, counted)
        sampled = self._read_batches % _NEAR_MISS_EVERY == 0 and self.settings.near_misses
        near = self._near_misses(batch, firings) if sampled else None
        self._read_batches += 1
        return partial(self._count, firings, near)

    def _near_misses(self, batch: ActivationBatch, firings: Firings) -> NearMisses | None:
        """Return, of each row and feature, how near the nearest token on which it does not fire comes, and which."""
        near = self.source.nearly(batch.activations)
        if near is None:
            return None
        near[torch.from_numpy(~firings.counted.ravel()).to(near.device)] = -torch.inf
        token_of, feature_of = (torch.from_numpy(a).to(near.device) for a in (firings.token_of, firings.feature_of))
        near[token_of, feature_of] = -torch.inf
        best, place = near.view(*firings.tokens.shape, -1).max(dim=1)
        return best.float().cpu().numpy(), place.cpu().numpy()

    def _count(self, firings: Firings, near: NearMisses | None) -> None:
        self.moments.update(firings)
        self.roles.update(firings)
        self.top.update(firings, firings.feature_of, firings.token_of, firings.values)
        scores = weighted_scores(firings, self.settings.seed)
        self.sampled.update(firings, firings.feature_of, firings.token_of, scores)
        place = firings.token_of % firings.context
        for counts, shift in ((self.on, 0), (self.before, -1), (self.after, 1)):
            inside = (place + shift >= 0) & (place + shift < firings.context)
            beside = firings.flat_tokens[firings.token_of[inside] + shift]
            counts.update(firings.feature_of[inside], beside.astype(np.int64))
        if self.cofiring is not None:
            self.cofiring.update(firings)
        if near is not None:
            # Only features that fire at all: what a dead one is near to says nothing.
            row, feature = (np.isfinite(near[0]) & (self.moments.fires > 0)).nonzero()
            places = row * firings.context + near[1][row, feature]
            self.near_misses.update(firings, feature, places, near[0][row, feature])
        self.batches += 1

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that has been counted, as arrays by name."""
        arrays: dict[str, NDArray[Any]] = {"batches": np.array(self.batches)}
        for name, part in self._parts().items():
            if isinstance(part, PairCounts):
                arrays |= {f"{name}.{key}": a for key, a in zip(_WAITING, part.waiting, strict=True)}
            for key, value in vars(part).items():
                if isinstance(value, np.ndarray):
                    arrays[f"{name}.{key}"] = value
        if self.cofiring is not None:
            arrays |= dict(zip(_SAMPLE, self.cofiring.sample, strict=True))
        return arrays

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a `state`."""
        self.batches = self._read_batches = int(arrays["batches"])
        for name, part in self._parts().items():
            for key, value in vars(part).items():
                if isinstance(value, np.ndarray):
                    setattr(part, key, np.array(arrays[f"{name}.{key}"]))
            if isinstance(part, PairCounts):
                part.restore_waiting(*(arrays[f"{name}.{key}"] for key in _WAITING))
        if self.cofiring is not None:
            self.cofiring.restore_sample(*(arrays[name] for name in _SAMPLE))

    def _parts(self) -> dict[str, Any]:
        parts = {
            "moments": self.moments,
            "roles": self.roles,
            "top": self.top,
            "sampled": self.sampled,
            "near_misses": self.near_misses,
            "on": self.on,
            "before": self.before,
            "after": self.after,
        }
        return parts | ({"cofiring": self.cofiring} if self.cofiring is not None else {})
