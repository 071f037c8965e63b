"""A tiny model, a dictionary of latents for it, and a feature dictionary that belongs to both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.fake_dictionary import fake_manifest, fake_tables
from helpers.steered_models import F, lm, make_sae, tokens
from helpers.tiny_models import tiny, tiny_folder
from lightsae.analysis.dictionary import FeatureDictionary, write_dictionary
from lightsae.formats.native import save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm import LanguageModel
from lightsae.sae import SparseAutoencoder

SITE = "resid_post.1"


@pytest.fixture
def sae(make_sae: Callable[..., SparseAutoencoder], lm: LanguageModel) -> SparseAutoencoder:
    return make_sae(lm, SITE, "ReLU")


@pytest.fixture
def make_dictionary(lm: LanguageModel, tmp_path: Path) -> Callable[..., FeatureDictionary]:
    """Return a function from an SAE to a feature dictionary for it; `change` may edit its tables and manifest."""

    def make(sae: SparseAutoencoder, name: str = "dictionary", change: Callable[..., Any] | None = None) -> Any:
        save_sae(sae, tmp_path / f"{name}_sae")
        manifest = fake_manifest(F) | {"sae": SavedSAE.open(tmp_path / f"{name}_sae").entry}
        manifest["model"] = {"name": lm.name, "revision": None}
        tables = fake_tables(F)
        if change is not None:
            change(tables, manifest)
        write_dictionary(tmp_path / name, tables, manifest)
        return FeatureDictionary.open(tmp_path / name)

    return make


@pytest.fixture
def dictionary(make_dictionary: Callable[..., FeatureDictionary], sae: SparseAutoencoder) -> FeatureDictionary:
    return make_dictionary(sae)


@pytest.fixture
def padded(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two rows, the second padded on the left by four."""
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}
