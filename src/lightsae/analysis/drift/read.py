"""What `drift` compares: two dictionaries' directions, and their activations over the same text.

Axes: T tokens, F latents, D width of the site.
"""

from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from lightsae.activations.stream import Timings
from lightsae.analysis.drift.matching import Dictionary
from lightsae.analysis.effects.directions import directions
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.firings import Firings
from lightsae.analysis.reading.loaded_sae import Origin, TextSettings
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import Rows
from lightsae.errors import ConfigError
from lightsae.progress import Progress


def read_dictionary(
    folder: str | Path, settings: TextSettings, tokens: int, progress: Progress, rows: Rows | None = None
) -> tuple[Dictionary, Rows]:
    """Return a dictionary's directions and its activations on some rows: the given ones, or held-out rows of its own.

    Raises:
        ConfigError: It writes to several sites, so that its directions have no one unit; or its language model reads
            other tokens than those of the rows.
    """
    origin = Origin.load(folder, settings, whole_model=False)
    sites = list(origin.sae.widths.predicted)
    if len(sites) > 1:
        raise ConfigError(f"{str(folder)!r} predicts {len(sites)} sites; drift compares dictionaries of one site each.")
    if rows is None:
        rows = origin.held_out_rows(tokens)
    elif int(rows.tokens.max()) >= len(origin.main_model.tokenizer):
        raise ConfigError(
            f"{str(folder)!r} is of a model with another vocabulary; drift needs the same tokens for both."
        )
    reader, source = ActivationReader(origin.models, origin.reading, Timings()), SAEFeatures(origin.sae)
    parts, read = [], 0
    with progress.stage(f"reading {folder}", rows.tokens.size) as done, torch.no_grad():
        for batch, counted in reader.batches(rows):
            # All tokens but the first of each row, on both sides: what is a sink differs between models.
            firings = Firings.of(source.encode(batch.activations), batch, _all_but_first(counted))
            shape = (counted.size, source.n_features)
            parts.append(sparse.csr_matrix((firings.values, (firings.token_of, firings.feature_of)), shape=shape))
            read += counted.size
            done(read)
    rows_of_decoder = directions(origin.sae, sites[0]).cpu()
    return Dictionary(rows_of_decoder, sparse.vstack(parts).tocsc()), rows


def _all_but_first(counted: np.ndarray) -> np.ndarray:
    kept = np.ones_like(counted)
    kept[:, 0] = False
    return kept
