"""A tiny model, a dictionary of latents for it, a feature dictionary that belongs to both, and a chat tokenizer."""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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


@pytest.fixture
def chat_tokenizer(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model's tokenizer, with a chat template: small letters, a space, a line end; its first ids are special."""
    special = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, "\u0120", "\u010a", *string.ascii_lowercase])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", padding_side="left",
        additional_special_tokens=special[3:],
    )  # fmt: skip
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    monkeypatch.setitem(vars(lm), "tokenizer", tokenizer)
    return tokenizer
