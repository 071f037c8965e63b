"""Firings in the files that Delphi (eai-delphi 0.1) explains and scores latents from.

    OUT/{site}/{first}_{last}.safetensors   of the latents from first to last, both counted in:
                                            locations (N, 3) = row, position, latent - first; activations (N,) float16;
                                            tokens (rows, S), the same in each file
    OUT/{site}/config.json                  where the text comes from

Activations are in the SAE's normalised units. Those up to 1e-5 are left out, as Delphi does.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightsae.activations.corpus.documents import Split
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.firings import Firings
from lightsae.analysis.reading.loaded_sae import LoadedSAE
from lightsae.analysis.reading.text import CorpusRows
from lightsae.errors import ConfigError, FormatError, arg
from lightsae.formats.files import entries, replace_folder_atomically
from lightsae.formats.tensor_files import save_tensors
from lightsae.progress import Progress

_LEAST = 1e-5
_LARGEST = float(np.finfo(np.float16).max)


def write_delphi_cache(
    loaded: LoadedSAE,
    out: Path,
    split: Split,
    tokens: int,
    everything: bool,
    progress: Progress,
    splits: int = 5,
) -> int:
    """Write the firings of a text as Delphi's cache; return how many there were. All of them are held in memory.

    Args:
        loaded: The SAE, which reads one site; its language models, its corpus.
        out: The folder, a new one or an earlier cache, which is replaced as a whole.
        split: Split of the corpus.
        tokens: How many to read; fewer if the held-out documents end before.
        everything: Keep attention sinks, special tokens and skipped positions too.
        progress: Receives the tokens read.
        splits: Files that the latents are dealt to.

    Raises:
        ConfigError: There are more files than latents.
        FormatError: The folder holds other files.
    """
    d_sae, sites = loaded.sae.d_sae, [ref.site for ref in loaded.sae.widths.read]
    if not 0 < splits <= d_sae:
        raise ConfigError("splits", splits, f"it must lie in 1..{d_sae}, the number of latents")
    site = ", ".join(sites)
    if len(sites) != 1:
        raise FormatError(f"Delphi reads latents of one site, and this SAE reads {site}.")
    if (before := entries(out, "for the cache")) and [path.name for path in before] != [site]:
        raise FormatError(f"{arg('out')} is {str(out)!r}, which holds other files; name a new folder.")
    source = SAEFeatures(loaded.sae)
    rows = CorpusRows(loaded.corpus, loaded.main_model.vocabulary, split, tokens)
    texts: list[Any] = []
    found: list[tuple[Any, Any]] = []
    for batch, counted in loaded.reader().read(rows, "predict", progress):
        firings = Firings.of(source.encode(batch.activations), batch, np.ones_like(counted) if everything else counted)
        kept = firings.values > _LEAST
        places = firings.token_of[kept]
        at = firings.rows[places // firings.context], places % firings.context, firings.feature_of[kept]
        found.append((np.stack(at, axis=1).astype(np.uint32), firings.values[kept]))
        texts.append(firings.tokens)
    locations = np.concatenate([where for where, _ in found] or [np.empty((0, 3), np.uint32)])
    values = np.concatenate([value for _, value in found] or [np.empty(0, np.float32)])
    with replace_folder_atomically(out) as staged:
        folder = staged / site
        folder.mkdir()
        for first, last in _ranges(d_sae, splits):
            own = (locations[:, 2] >= first) & (locations[:, 2] <= last)
            chosen = locations[own] - np.array([0, 0, first], np.uint32)
            narrow = np.uint16 if not len(chosen) or chosen.max() <= np.iinfo(np.uint16).max else np.uint32
            tensors = {
                "locations": torch.from_numpy(chosen.astype(narrow)),
                "activations": torch.from_numpy(np.minimum(values[own], _LARGEST).astype(np.float16)),
                "tokens": torch.from_numpy(np.concatenate(texts).astype(np.int64)),
            }
            save_tensors(tensors, folder / f"{first}_{last}.safetensors")
        (folder / "config.json").write_text(json.dumps(_config(loaded, split, texts, splits), indent=2) + "\n")
    return len(values)


def _ranges(d_sae: int, splits: int) -> list[tuple[int, int]]:
    """Return the first and the last latent of each file.

    >>> _ranges(10, 3)
    [(0, 2), (3, 5), (6, 9)]
    """
    edges = [d_sae * place // splits for place in range(splits + 1)]
    return [(first, following - 1) for first, following in itertools.pairwise(edges)]


def _config(loaded: LoadedSAE, split: Split, texts: list[Any], splits: int) -> dict[str, Any]:
    corpus = loaded.corpus
    return {
        "dataset_repo": corpus.dataset,
        "dataset_split": split,
        "dataset_name": corpus.dataset_config or "",
        "dataset_column": corpus.text_column,
        "batch_size": len(texts[0]) if texts else 0,
        "cache_ctx_len": corpus.context_size,
        "n_tokens": sum(part.size for part in texts),
        "n_splits": splits,
        "model_name": next(iter(loaded.sae.widths.read)).model,
    }
