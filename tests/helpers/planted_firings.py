"""Planted firings, and a source and a reader that give them back: the activations are the features themselves.

Axes: n rows, S tokens in a row, F features, T = n * S.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.fills import ReadSettings
from lightsae.analysis.reading.firings import Firings
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import TextRows
from lightsae.sae import SiteRef
from lightsae.sae.sparse_ops import SparseLatents

SITE = SiteRef("model", "site")
Dense = NDArray[np.float32]


class PlantedSource:
    """Fires where its activations are above 0; latents come as TopK gives them, by size and with zeros among them."""

    def __init__(self, n_features: int) -> None:
        self.n_features = n_features

    def encode(self, activations: Mapping[SiteRef, Any]) -> SparseLatents:
        values, indices = activations[SITE].clamp_min(0).topk(self.n_features, dim=1)
        return SparseLatents.from_rows(values, indices, self.n_features)

    def above(self, activations: Mapping[SiteRef, Any], least: Any) -> tuple[Any, Any, Any]:
        tokens, features = (activations[SITE] > least).nonzero(as_tuple=True)
        return tokens, features, activations[SITE][tokens, features]

    def nearly(self, activations: Mapping[SiteRef, Any]) -> Any:
        return activations[SITE].clone()


class PlantedReader(ActivationReader):
    """Gives what a function says of rows, and which of their tokens count; fails at one batch, if told so.

    Args:
        dense_of: From rows to (T, F): above 0 a feature fires.
        counted_of: From rows to (rows, S).
    """

    def __init__(
        self,
        dense_of: Callable[[TextRows], Dense],
        counted_of: Callable[[TextRows], NDArray[np.bool_]],
        rows_at_once: int,
        fails_at: int = -1,
    ) -> None:
        self.reading = ReadSettings((SITE,), torch.float32, rows_at_once)
        self.dense_of, self.counted_of, self.fails_at = dense_of, counted_of, fails_at

    def batches(self, rows: TextRows, start: int = 0) -> Iterator[tuple[ActivationBatch, NDArray[np.bool_]]]:
        for number, part in enumerate(rows.batches(self.reading.rows_at_once, start)):
            if number == self.fails_at:
                raise RuntimeError("killed")
            yield batch_of(part, self.dense_of(part)), self.counted_of(part)


def batch_of(rows: TextRows, dense: Dense) -> ActivationBatch:
    n, context = rows.tokens.shape
    nothing = torch.zeros(n * context, dtype=torch.bool)
    return ActivationBatch(
        activations={SITE: torch.from_numpy(dense)},
        tokens=torch.from_numpy(rows.tokens.astype(np.int64).ravel()),
        positions=torch.arange(context).repeat(n),
        documents=torch.from_numpy(rows.documents.ravel()),
        rows=torch.from_numpy(rows.numbers).repeat_interleave(context),
        special=nothing,
        sinks={SITE: nothing},
        rows_shape=(n, context),
    )


@dataclass(frozen=True)
class Planted:
    """A text with firings. Row numbers are indices, so that brute force finds its way."""

    rows: TextRows
    dense: Dense  # (T, F)
    counted: NDArray[np.bool_]  # (n, S)
    vocabulary: int

    @property
    def source(self) -> PlantedSource:
        return PlantedSource(self.dense.shape[1])

    @property
    def context(self) -> int:
        return self.rows.tokens.shape[1]

    @property
    def fired(self) -> Dense:
        """(T, F) activations; 0 where a feature does not fire, or the token does not count."""
        return np.where(self.counted.ravel()[:, None], np.maximum(self.dense, 0), 0)

    def reader(self, rows_at_once: int, fails_at: int = -1) -> PlantedReader:
        by_row = self.dense.reshape(len(self.rows), self.context, -1)
        return PlantedReader(
            lambda part: by_row[part.numbers].reshape(-1, by_row.shape[2]),
            lambda part: self.counted[part.numbers],
            rows_at_once,
            fails_at,
        )

    def firings(self, rows_at_once: int = 1000) -> Iterator[Firings]:
        for batch, counted in self.reader(rows_at_once).batches(self.rows):
            yield Firings.of(self.source.encode(batch.activations), batch, counted)


def planted(rows: int = 30, context: int = 28, features: int = 6, vocabulary: int = 11, seed: int = 0) -> Planted:
    """Random firings on a fifth of the tokens; the last feature never fires. Documents go across rows."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, vocabulary, (rows, context)).astype(np.int32)
    lengths = draw.integers(10, 90, rows * context)
    documents = np.repeat(np.arange(len(lengths)), lengths)[: rows * context].reshape(rows, context)
    dense = (draw.normal(size=(rows * context, features)) - 0.85).astype(np.float32)
    dense[:, -1] = -np.abs(dense[:, -1])
    counted = draw.random((rows, context)) > 0.05
    counted[:, 0] = False
    return Planted(TextRows(tokens, documents, np.arange(rows)), dense, counted, vocabulary)
