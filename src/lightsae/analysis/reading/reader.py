"""Token rows to activations, with the tokens that count: the reading that training did, on other text.

Axes: rows, S tokens per row, D width of a site.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightsae.activations.batch import ActivationBatch, check_finite
from lightsae.activations.fills import ReadSettings, read_rows
from lightsae.activations.roles import among
from lightsae.activations.timings import Timings
from lightsae.analysis.reading.text import CorpusRows, TextRows
from lightsae.lm import LanguageModel
from lightsae.progress import Progress
from lightsae.sae import SiteRef

Batches = Iterator[tuple[ActivationBatch, NDArray[np.bool_]]]


@dataclass
class ActivationReader:
    """Runs rows through the language models that an SAE reads.

    Attributes:
        models: By name; the first one brings the tokenizer.
        reading: Sites, dtype, rows per forward pass.
        beside: Further sites that are read. Which tokens count does not depend on them.
        timings: Where the forward passes are counted.
    """

    models: Mapping[str, LanguageModel]
    reading: ReadSettings
    beside: tuple[SiteRef, ...] = ()
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        self._buffers: dict[SiteRef, Tensor] = {}

    def read(self, rows: TextRows | CorpusRows, stage: str, progress: Progress, start: int = 0) -> Batches:
        """Yield the same as `batches`; every batch is reported, in tokens, once the caller is done with it."""
        with progress.stage(stage, rows.n_tokens) as report:
            read = 0
            for batch, counted in self.batches(rows, start):
                yield batch, counted
                # TextRows before `start` are as long as these.
                read += counted.size
                report(start * counted.shape[1] + read)

    def batches(self, rows: TextRows | CorpusRows, start: int = 0) -> Batches:
        """Yield activations of whole rows, from row `start` on, and which of their tokens count.

        Left out are attention sinks at the sites read, special tokens, the positions that training skipped,
        and roles that it did.
        """
        everything = replace(self.reading, sites=tuple(dict.fromkeys((*self.reading.sites, *self.beside))))
        for part in rows.batches(self.reading.rows_at_once, start):
            batch = read_rows(self.models, part.of_corpus, part.numbers, everything, self._buffers, self.timings)
            check_finite(batch, "of the text")
            left_out = batch.sinks_at(self.reading.sites) | batch.special
            left_out |= batch.positions < self.reading.skip_positions
            if batch.roles is not None:
                left_out |= ~among(batch.roles, self.reading.roles)
            yield batch, ~left_out.reshape(part.tokens.shape).cpu().numpy()
