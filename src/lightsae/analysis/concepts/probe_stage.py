"""Probes as a part of an evaluation: the tokens of all concepts are read in one pass, and serve every population.

Axes: n tokens that are read, D width of what the SAE reads, F latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from lightsae.analysis.concepts.figures import Values
from lightsae.analysis.concepts.probes import (
    Columns,
    Probe,
    Samples,
    draw_samples,
    full_probe,
    probe_figures,
    sparse_probes,
)
from lightsae.analysis.concepts.report import ProbeScore
from lightsae.analysis.concepts.task import Task
from lightsae.analysis.concepts.truth import Ints
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import TextRows
from lightsae.progress import Progress
from lightsae.sae import SiteRef, SparseAutoencoder, Widths

SAE, NEURONS = "sae", "neurons"
# Tokens whose activations are kept, numbers in all of them; tokens that are encoded at once.
_TOKENS, _NUMBERS, _ENCODED = 65_536, 1 << 28, 4096


@dataclass(frozen=True)
class Probed:
    """The probes of all populations.

    Attributes:
        figures: By population, for every draw of the documents of the tests.
        scores: AUC of each concept.
        tokens: Of the tests, over all concepts.
    """

    figures: dict[str, dict[str, Values]]
    scores: list[ProbeScore]
    tokens: int


def probe(
    task: Task,
    concepts: int,
    saes: Mapping[str, SparseAutoencoder],
    neurons: Mapping[SiteRef, int],
    reader: ActivationReader,
    rows: TextRows,
    times: NDArray[np.float64],
    seed: int,
    progress: Progress,
) -> Probed:
    """Probe some of the concepts.

    Args:
        task: The concepts of the text.
        concepts: How many are probed.
        saes: The SAE, under the name `SAE`, and those that learned nothing.
        neurons: Sites of the raw neurons, which `reader` reads beside.
        reader: Reads the text.
        rows: The text.
        times: How often each document of the tests is in each draw.
        seed: Of the samples.
        progress: Is told.
    """
    sae = saes[SAE]
    width = sum(sae.widths.read.values()) + sum(neurons.values())
    kept = rows.spread(max(1, min(_TOKENS, _NUMBERS // width) // rows.tokens.shape[1]))
    readable = np.isin(rows.numbers, kept.numbers).repeat(rows.tokens.shape[1])
    samples = draw_samples(task, concepts, readable, seed)
    if not samples.each:
        return Probed({}, [], 0)
    read, raw = _activations(samples, sae, neurons, reader, rows, progress)
    populations: dict[str, Columns] = {name: _latents(one, read) for name, one in saes.items()}
    populations[NEURONS] = raw.numpy()
    documents = task.document_of[samples.tokens]
    found: dict[str, list[dict[int, Probe]]] = {name: [] for name in populations}
    with progress.stage("probes", len(samples.each)) as report:
        for number, sample in enumerate(samples.each):
            for name, columns in populations.items():
                found[name].append(sparse_probes(sample, columns, documents, times))
            found[SAE][-1][0] = full_probe(sample, read.numpy(), documents, times)
            report(number + 1)
    return Probed(
        {name: probe_figures(probes) for name, probes in found.items()},
        [
            ProbeScore(
                name=task.names[sample.concept],
                tokens=len(sample.tests),
                latents=max((one.columns for one in found[SAE][place].values()), key=len),
                auc={name: _aucs(probes[place]) for name, probes in found.items()},
            )
            for place, sample in enumerate(samples.each)
        ],
        sum(len(sample.tests) for sample in samples.each),
    )


def _aucs(probes: Mapping[int, Probe]) -> dict[str, float]:
    return {f"k{k}" if k else "full": round(float(one.auc[0]), 4) for k, one in probes.items()}


def _activations(
    samples: Samples,
    sae: SparseAutoencoder,
    neurons: Mapping[SiteRef, int],
    reader: ActivationReader,
    rows: TextRows,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Return what the SAE reads, (n, D), and the neurons, at the tokens of the samples."""
    context = rows.tokens.shape[1]
    places = np.unique(samples.tokens // context)
    wanted = rows.taken(places)
    # Within the rows that are read.
    tokens: Ints = np.searchsorted(places, samples.tokens // context) * context + samples.tokens % context
    parts, start = [], 0
    for batch, counted in reader.read(wanted, "activations for probes", progress):
        first, last = np.searchsorted(tokens, [start, start + counted.size])
        at = torch.from_numpy(tokens[first:last] - start)
        both = (Widths.join(batch.activations, sites) for sites in (sae.widths.read, neurons))
        parts.append(tuple(values[at.to(values.device)].float().cpu() for values in both))
        start += counted.size
    read, raw = (torch.cat(side) for side in zip(*parts, strict=True))
    return read, raw


@torch.no_grad()
def _latents(sae: SparseAutoencoder, read: Tensor) -> sparse.csr_array:
    """Return the latents of an SAE, (n, F)."""
    device = next(sae.parameters()).device
    parts = []
    for start in range(0, len(read), _ENCODED):
        latents = sae.encode_sparse(read[start : start + _ENCODED].to(device))
        values, indices, offsets = (
            part.cpu().numpy() for part in (latents.values.float(), latents.indices, latents.offsets)
        )
        part = sparse.csr_array((values, indices, offsets), shape=(len(offsets) - 1, sae.d_sae))
        part.eliminate_zeros()
        parts.append(part)
    return sparse.csr_array(sparse.vstack(parts, format="csr"))
