"""What `drift` compares: the directions of SAEs, and their activations over the same text.

Axes: T tokens, F latents, D width of the site.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from lightsae.analysis.effects.directions import directions
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.firings import Firings
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.analysis.reading.text import TextRows
from lightsae.errors import ConfigError
from lightsae.progress import Progress


@dataclass(frozen=True)
class SAEOnText:
    """What is compared of an SAE.

    Attributes:
        decoder: (F, D) directions in raw units, W_dec / output_scale.
        activations: (T, F) scipy sparse, the activations over a text; both SAEs over the same tokens.
    """

    decoder: Float[Tensor, "F D"]
    activations: Any

    def __len__(self) -> int:
        return len(self.decoder)


def read_on_text(
    folder: str | Path, settings: TextSettings, tokens: int, progress: Progress, rows: TextRows | None = None
) -> tuple[SAEOnText, TextRows]:
    """Return an SAE's directions and its activations on `rows`; if there are none, on held-out rows of its own.

    Raises:
        ConfigError: It writes to several sites, so that its directions have no one unit; or its language model reads
            other tokens than those of the rows.
    """
    loaded = LoadedSAE.load(folder, settings, whole_model=False)
    sites = list(loaded.sae.widths.predicted)
    if len(sites) > 1:
        raise ConfigError(f"{str(folder)!r} predicts {len(sites)} sites; drift compares SAEs of one site each.")
    if rows is None:
        rows = loaded.held_out_rows(tokens)
    elif int(rows.tokens.max()) >= len(loaded.main_model.tokenizer):
        raise ConfigError(
            f"{str(folder)!r} is of a model with another vocabulary; drift needs the same tokens for both."
        )
    source, parts = SAEFeatures(loaded.sae), []
    for batch, counted in loaded.reader().read(rows, f"reading {folder}", progress):
        # All tokens but the first of each row, on both sides: what is a sink differs between models.
        kept = np.ones_like(counted)
        kept[:, 0] = False
        firings = Firings.of(source.encode(batch.activations), batch, kept)
        shape = (counted.size, source.n_features)
        parts.append(sparse.csr_matrix((firings.values, (firings.token_of, firings.feature_of)), shape=shape))
    return SAEOnText(directions(loaded.sae, sites[0]).cpu(), sparse.vstack(parts).tocsc()), rows
