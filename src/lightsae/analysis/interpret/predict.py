"""The sparse activations themselves, written to Parquet as they stream by: one row per firing.

Columns: document, row (running numbers), position (in its row), token (id), latent, value (normalised units), role.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightsae.activations.corpus.documents import Split
from lightsae.activations.roles import ROLES
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.firings import Firings
from lightsae.analysis.reading.loaded_sae import LoadedSAE
from lightsae.analysis.reading.text import CorpusRows
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
        ("role", pa.string()),  # whose words the token is; null where no text is a conversation
    ]
)


def predict(loaded: LoadedSAE, out: Path, split: Split, tokens: int, everything: bool, progress: Progress) -> int:
    """Write the firings of a text to a Parquet file, batch by batch; return how many there were.

    Args:
        loaded: The SAE, its language models, its corpus.
        out: The file; an earlier one is replaced when the new one is complete.
        split: Split of the corpus.
        tokens: How many to read; fewer if the held-out documents end before.
        everything: Keep attention sinks, special tokens and skipped positions too.
        progress: Receives the tokens read.
    """
    source, written = SAEFeatures(loaded.sae), 0
    rows = CorpusRows(loaded.corpus, loaded.main_model.vocabulary, split, tokens)
    with write_atomically(out) as staged, pq.ParquetWriter(staged, FIRINGS, compression="zstd") as file:
        for batch, counted in loaded.reader().read(rows, "predict", progress):
            kept = np.ones_like(counted) if everything else counted
            firings = Firings.of(source.encode(batch.activations), batch, kept)
            file.write_table(_table(firings))
            written += len(firings.values)
    return written


def _table(firings: Firings) -> pa.Table:
    places = firings.token_of
    columns = (
        firings.documents.ravel()[places],
        firings.rows[places // firings.context],
        places % firings.context,
        firings.flat_tokens[places],
        firings.feature_of,
        firings.values,
        pa.nulls(len(places)) if firings.roles is None else pa.array(ROLES).take(pa.array(firings.roles[places])),
    )
    return pa.table(
        [(c if isinstance(c, pa.Array) else pa.array(c)).cast(f.type) for c, f in zip(columns, FIRINGS, strict=True)],
        schema=FIRINGS,
    )
