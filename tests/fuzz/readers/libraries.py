"""SAEs and crosscoders that dictionary_learning, sparsify and others train: pickles, safetensors, and their JSON."""

from functools import partial
from pathlib import Path

import torch

from fuzz.readers.base import Reader
from helpers.layout_files import Make, crosscoders, dictionary_learning, openai, sparsify
from lightsae.formats.saved_sae import SavedSAE

TOKENS = 3


def _make(make: Make, folder: Path) -> None:
    make(folder)


def _open(within: str, folder: Path) -> None:
    sae = SavedSAE.open(folder / within).sae
    with torch.no_grad():
        latents, output = sae.encode(torch.ones(TOKENS, sae.d_in)), sae(torch.ones(TOKENS, sae.d_in))
    assert latents.shape == (TOKENS, sae.d_sae)
    assert output.x_hat.shape == (TOKENS, sae.d_out)
    assert all(bool(value.isfinite().all()) for value in sae.state_dict().values())


def _reader(make: Make, within: str) -> Reader:
    return Reader(partial(_make, make), partial(_open, within))


LIBRARIES = {
    "layout_dictionary_learning": _reader(dictionary_learning.CASES["MatryoshkaBatchTopKSAE"][0], "run/trainer_0"),
    "layout_dictionary_learning_alone": _reader(
        dictionary_learning.CASES["GatedAutoEncoder alone"][0], "run/trainer_0"
    ),
    "layout_sparsify": _reader(sparsify.CASES["skip transcoder"][0], "run/layers.3.mlp"),
    "layout_openai": _reader(openai.CASES["TopK"][0], "resid_post_mlp_v5_32k/autoencoders/8.pt"),
    "layout_ckkissane": _reader(crosscoders.MODEL_DIFF["of the Hub"][0], "."),
    "layout_science_of_finetuning": _reader(crosscoders.FINETUNING["BatchTopK, means"][0], "."),
}
