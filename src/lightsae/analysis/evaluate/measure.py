"""One pass over text for all SAEs: sums over documents of what their reconstructions and firings are.

Axes:    T tokens, D width read, O width predicted, F latents, N documents, S positions in a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.analysis.evaluate.document_sums import DocumentSums
from lightsae.analysis.evaluate.groups import Group, Groups, GroupSums
from lightsae.analysis.reading.firing_collector import FiringCollector
from lightsae.analysis.reading.reader import Batches
from lightsae.metrics.reconstruction import token_terms
from lightsae.sae import SparseAutoencoder, Widths
from lightsae.sae.sparse_ops import SparseLatents, as_sparse

# Bands of positions begin at these.
POSITIONS = (0, 1, 4, 16, 64, 256, 1024)
# Bands of tokens, by the share of the text that a token is, begin at these.
FREQUENCIES = (0.0, 1e-4, 1e-3, 1e-2)


@dataclass
class Measured:
    """Sums of one SAE over a text.

    Attributes:
        sums: What `figures.reconstruction` reads.
        bands: (2, bands): by position and by frequency of the token, sums of tokens, error, square, fired; `offset` of
            each band stands in `band_offsets`.
        l0: How many latents fire on each token, and its document.
        fires: On how many tokens of a document each latent fires.
        groups: `sums` and firings of each group of tokens.
    """

    sums: DocumentSums = field(default_factory=DocumentSums)
    bands: dict[str, DocumentSums] = field(
        default_factory=lambda: {"positions": DocumentSums(), "frequencies": DocumentSums()}
    )
    band_offsets: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    l0: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    fires: list[sparse.coo_array] = field(default_factory=list)
    groups: GroupSums = field(default_factory=GroupSums)

    @cached_property
    def tables(self) -> dict[str, NDArray[np.float64]]:
        """`sums` by document, added up once; nothing may be added behind it."""
        return self.sums.tables()

    def l0_table(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return how many tokens of each document have each number of latents, and those numbers."""
        documents = np.concatenate([documents for documents, _ in self.l0])
        values, column = np.unique(np.concatenate([counts for _, counts in self.l0]), return_inverse=True)
        present, row = np.unique(documents, return_inverse=True)
        table = np.zeros((len(present), len(values)))
        np.add.at(table, (row, column), 1)
        return table, values

    @cached_property
    def fires_table(self) -> sparse.csr_array:
        """Return (N, F): on how many tokens of each document each latent fires."""
        numbers = self.sums.documents
        stacked = sum(part.tocsr() for part in self.fires)
        return sparse.csr_array(stacked)[numbers]


@torch.no_grad()
def measure(
    saes: Mapping[str, SparseAutoencoder],
    batches: Batches,
    centre: Float[Tensor, " O"],
    share_of_token: NDArray[np.float64],
    documents: int,
    collectors: Mapping[str, FiringCollector] | None = None,
    groups: Mapping[str, Groups] | None = None,
) -> dict[str, Measured]:
    """Run SAEs over a text; each token is encoded once by each.

    Args:
        saes: By name, in eval mode; they read and predict the same sites.
        batches: Whole rows, with what they read and what they predict, and which tokens count.
        centre: About the mean of what is predicted, so that sums of squares keep their digits.
        share_of_token: By token id, its share of the text.
        documents: One more than the largest number of a document.
        collectors: By the same names, who is given the firings too.
        groups: By the same names, the groups of tokens that have sums of their own.
    """
    measured = {name: Measured() for name in saes}
    for batch, counted in batches:
        for name, sae in saes.items():
            output = sae(Widths.join(batch.activations, sae.widths.read))
            latents = as_sparse(output.latents)
            members = groups[name].members(batch) if groups is not None and name in groups else {}
            _add(measured[name], sae, batch, output.x_hat.float(), latents, centre, share_of_token, documents, members)
            if collectors is not None and name in collectors:
                collectors[name].update(batch, counted, latents)
    return measured


def _add(
    measured: Measured,
    sae: SparseAutoencoder,
    batch: ActivationBatch,
    x_hat: Tensor,
    latents: SparseLatents,
    centre: Tensor,
    share_of_token: NDArray[np.float64],
    documents: int,
    members: Mapping[Group, NDArray[np.bool_]],
) -> None:
    target = Widths.join(batch.activations, sae.widths.predicted).float()
    terms, offset = token_terms(target, x_hat), target - centre
    norm = terms.square.sqrt().clamp_min(torch.finfo(target.dtype).tiny)
    fires = latents.values > 0
    tokens, indices = latents.pattern.token_of[fires], latents.indices[fires]
    fired = torch.bincount(tokens, minlength=len(target))
    of_documents = batch.documents.cpu().numpy()
    ordinary = (~batch.sinks_at(sae.widths.predicted)).cpu().numpy().astype(np.float64)
    values = {
        "tokens": np.ones(len(target)),
        "error": _numbers(terms.error),
        "square": _numbers(offset.square().sum(1)),
        "predicted": _numbers(terms.predicted),
        "product": _numbers(terms.product),
        "cosine": _numbers(terms.cosine),
        "ratio": _numbers(terms.predicted.sqrt() / norm),
        "offset": _numbers(offset),
        "fired": _numbers(fired),
    }
    without = {f"{name}_no_sinks": (ordinary * column.T).T for name, column in values.items()}
    measured.sums.add(of_documents, values | without)
    measured.groups.add(members, of_documents, values | without)
    measured.l0.append((of_documents, fired.cpu().numpy().astype(np.int64)))
    of_firings, latent = tokens.cpu().numpy(), indices.cpu().numpy()
    measured.groups.add_firings(members, of_firings, latent, sae.d_sae)
    pair = (of_documents[of_firings], latent)
    measured.fires.append(sparse.coo_array((np.ones(len(tokens)), pair), shape=(documents, sae.d_sae)))
    _add_bands(measured, batch, values, ordinary, share_of_token)


def _add_bands(
    measured: Measured,
    batch: ActivationBatch,
    values: Mapping[str, NDArray[np.float64]],
    ordinary: NDArray[np.float64],
    share_of_token: NDArray[np.float64],
) -> None:
    """Add the tokens to their bands; sinks count in that of position 0 alone, which they are."""
    positions, ids = batch.positions.cpu().numpy(), batch.tokens.cpu().numpy()
    places = {
        "positions": np.searchsorted(POSITIONS, positions, side="right") - 1,
        "frequencies": np.searchsorted(FREQUENCIES, share_of_token[ids], side="right") - 1,
    }
    counts = {"positions": (ordinary > 0) | (positions == 0), "frequencies": ordinary > 0}
    for side, sums in measured.bands.items():
        number = len(POSITIONS if side == "positions" else FREQUENCIES)
        one_hot = np.eye(number)[places[side]] * counts[side][:, None]
        columns = {name: one_hot * values[name][:, None] for name in ("tokens", "error", "square", "fired")}
        sums.add(batch.documents.cpu().numpy(), columns)
        total = measured.band_offsets.setdefault(side, np.zeros((number, values["offset"].shape[1])))
        total += one_hot.T @ values["offset"]


def names_of(bounds: Sequence[int | float], last: str, unit: str = "") -> list[str]:
    """Return the names of bands that begin at some numbers.

    >>> names_of((0, 1, 4), "on")
    ['0', '1 to 3', '4 on']
    >>> names_of((0.0, 0.001), "or more", "%")
    ['below 0.1%', '0.1% or more']
    """
    if unit:
        shown = [f"{100 * bound:g}{unit}" for bound in bounds]
        inner = [f"{low} to {high}" for low, high in pairwise(shown[1:])]
        return [f"below {shown[1]}", *inner, f"{shown[-1]} {last}"]
    inner = [f"{low:g}" if high - low == 1 else f"{low:g} to {high - 1:g}" for low, high in pairwise(bounds)]
    return [*inner, f"{bounds[-1]:g} {last}"]


def _numbers(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
