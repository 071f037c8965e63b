"""The sparse activations themselves, written to Parquet as they stream by: one row a firing.

Columns: document, row (running numbers), position (in its row), token (id), latent, value (normalised units).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lightsae.activations.corpus.documents import Split
from lightsae.activations.corpus.rows import RowSource
from lightsae.activations.stream import Timings
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.firings import Firings
from lightsae.analysis.reading.loaded_sae import Origin
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import Rows
from lightsae.formats.files import write_atomically
from lightsae.progress import Progress

FIRINGS = pa.schema(
    [
        ("document", pa.int64()),
        ("row", pa.int64()),
        ("position", pa.int32()),
        ("token", pa.int32()),
        ("latent", pa.int32()),
        ("value", pa.float32()),
    ]
)


def predict(origin: Origin, out: Path, split: Split, tokens: int, everything: bool, progress: Progress) -> int:
    """Write the firings of a text to a Parquet file, batch by batch; return how many there were.

    Args:
        origin: The dictionary, its language models, its corpus.
        out: The file; an earlier one is replaced when the new one is complete.
        split: Of the corpus.
        tokens: How many to read; fewer where the held-out documents end.
        everything: Keep attention sinks, special tokens and skipped positions too.
        progress: Told of every batch, in tokens.
    """
    reader, source = ActivationReader(origin.models, origin.reading, Timings()), SAEFeatures(origin.sae)
    read = written = 0
    with (
        write_atomically(out) as staged,
        pq.ParquetWriter(staged, FIRINGS, compression="zstd") as file,
        progress.stage("predict", tokens) as done,
        torch.no_grad(),
    ):
        for rows in _rows(origin, split, tokens):
            for batch, counted in reader.batches(rows):
                kept = np.ones_like(counted) if everything else counted
                firings = Firings.of(source.encode(batch.activations), batch, kept)
                file.write_table(_table(firings))
                read += counted.size
                written += len(firings.values)
                done(read)
    return written


def _rows(origin: Origin, split: Split, tokens: int) -> Iterator[Rows]:
    source = RowSource(origin.corpus, origin.main_model.tokenizer, split)
    left, number, at_once = max(1, tokens // origin.corpus.context_size), 0, origin.reading.rows_at_once
    while left > 0:
        rows = source.take(min(at_once, left))
        if not len(rows):
            break
        yield Rows(rows.tokens, rows.documents, number + np.arange(len(rows)))
        number, left = number + len(rows), left - len(rows)
    source.close()


def _table(firings: Firings) -> pa.Table:
    places, row = firings.token_of, firings.token_of // firings.context
    columns = (
        firings.documents.ravel()[places],
        firings.rows[row],
        places % firings.context,
        firings.flat_tokens[places],
        firings.feature_of,
        firings.values,
    )
    return pa.table([pa.array(c).cast(f.type) for c, f in zip(columns, FIRINGS, strict=True)], schema=FIRINGS)
