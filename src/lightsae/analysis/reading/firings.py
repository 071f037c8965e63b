"""The firings of a batch of whole rows, on the host, and windows of text around them: what every count is made from.

Axes: T tokens (rows * S), N firings, F features, k windows kept per feature, W tokens in a window.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.batch import ActivationBatch
from lightsae.sae.sparse_ops import SparseLatents

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
# Tokens before and after the peak; the peak stands in column BEFORE.
BEFORE, AFTER = 16, 8
WIDTH = BEFORE + 1 + AFTER
NO_TOKEN = -1


@dataclass(frozen=True)
class Firings:
    """Which features fire where. Tokens that do not count (sinks, special tokens, skipped positions) have none.

    Attributes:
        token_of: (N,) token of each firing, ascending.
        feature_of: (N,) its feature.
        values: (N,) its activation, above 0.
        n_features: F.
        tokens: (rows, S) token ids.
        documents: (rows, S) running document numbers.
        rows: (rows,) running row numbers.
        counted: (rows, S) which tokens count.
        roles: (T,) whose words each token is; None where no text is a conversation.
    """

    token_of: Ints
    feature_of: Ints
    values: Floats
    n_features: int
    tokens: NDArray[np.int32]
    documents: Ints
    rows: Ints
    counted: NDArray[np.bool_]
    roles: NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, latents: SparseLatents, batch: ActivationBatch, counted: NDArray[np.bool_]) -> "Firings":
        """Bring a batch's latents to the host, without zeros and without tokens that do not count."""
        assert batch.rows_shape is not None, "whole rows are read"
        values = latents.values.float().cpu().numpy()
        token_of = latents.pattern.token_of.cpu().numpy()
        kept = (values > 0) & counted.ravel()[token_of]
        return cls(
            token_of[kept],
            latents.indices.cpu().numpy()[kept].astype(np.int64),
            values[kept],
            latents.pattern.width,
            batch.tokens.reshape(batch.rows_shape).cpu().numpy().astype(np.int32),
            batch.documents.reshape(batch.rows_shape).cpu().numpy(),
            batch.rows.reshape(batch.rows_shape)[:, 0].cpu().numpy(),
            counted,
            None if batch.roles is None else batch.roles.cpu().numpy(),
        )

    @property
    def context(self) -> int:
        return int(self.tokens.shape[1])

    @cached_property
    def flat_tokens(self) -> NDArray[np.int32]:
        """(T,) token ids."""
        return self.tokens.ravel()

    @cached_property
    def _by_key(self) -> tuple[NDArray[Any], Floats]:
        """The firings' (token, feature) keys, ascending, and their values: for looking one up."""
        # Half the width sorts twice as fast.
        fits = self.tokens.size * self.n_features < 2**31
        keys = (self.token_of * self.n_features + self.feature_of).astype(np.int32 if fits else np.int64)
        order = np.argsort(keys)
        return keys[order], self.values[order]

    def window_tokens(self, places: Ints) -> NDArray[np.int32]:
        """Return (n, W) token ids around some tokens; NO_TOKEN beyond the ends of their rows."""
        around, inside = self._around(places)
        return np.where(inside, self.flat_tokens[np.where(inside, around, 0)], NO_TOKEN).astype(np.int32)

    def window_values(self, places: Ints, features: Ints) -> Floats:
        """Return (n, W) activations of one feature each, around some tokens; 0 where it does not fire."""
        around, inside = self._around(places)
        keys, values = self._by_key
        if not len(keys):
            return np.zeros(around.shape, np.float32)
        sought = (np.where(inside, around, 0) * self.n_features + features[:, None]).astype(keys.dtype)
        places_of = np.minimum(np.searchsorted(keys, sought), len(keys) - 1)
        return np.where(inside & (keys[places_of] == sought), values[places_of], 0).astype(np.float32)

    def _around(self, places: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        around = places[:, None] + np.arange(-BEFORE, AFTER + 1)
        return around, (around >= 0) & (around // self.context == (places // self.context)[:, None])


@dataclass(frozen=True)
class Windows:
    """The windows that were kept of each feature, the best first.

    Attributes:
        scores: (F, k) what they are ordered by, descending; -inf if a feature has fewer than k.
        tokens: (F, k, W) token ids; NO_TOKEN beyond the ends of the row.
        values: (F, k, W) the feature's activation on each of them, in normalised units; 0 if it does not fire.
        documents: (F, k) running number of the document.
        rows: (F, k) running number of the token row.
        positions: (F, k) position of the peak in its row.
    """

    scores: NDArray[np.float32]
    tokens: NDArray[np.int32]
    values: NDArray[np.float32]
    documents: NDArray[np.int64]
    rows: NDArray[np.int64]
    positions: NDArray[np.int32]

    @property
    def there(self) -> NDArray[np.bool_]:
        """(F, k) which windows exist."""
        return np.isfinite(self.scores)

    @property
    def peaks(self) -> NDArray[np.float32]:
        """(F, k) the activation on the peak token."""
        peaks: NDArray[np.float32] = self.values[:, :, BEFORE]
        return peaks


def ranks(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each entry's place within its group, from 0; entries of one group stand together.

    >>> ranks(np.array([4, 4, 4, 7, 9, 9])).tolist()
    [0, 1, 2, 0, 0, 1]
    """
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else np.empty(0, np.int64)
    places: NDArray[np.int64] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))
    return places
