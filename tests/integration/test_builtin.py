"""The language model and the corpus that ship with the package."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import lightsae.lm
from lightsae.activations.corpus.builtin import LibraryText, split_of, standard_library_documents
from lightsae.lm import LanguageModel

FOLDER = Path(lightsae.lm.__file__).parent / "builtin"


@pytest.fixture(scope="module")
def held_out() -> list[LibraryText]:
    return list(standard_library_documents("validation"))


def test_is_small_and_says_what_it_is() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000
    facts = json.loads((FOLDER / "facts.json").read_text())
    assert facts["bits_per_byte"] < facts["five_gram_bits_per_byte"] < facts["gzip_bits_per_byte"]
    assert f"**{facts['bits_per_byte']:.3f}**" in (FOLDER / "README.md").read_text()


def test_splits_share_no_document_and_do_not_move(held_out: list[LibraryText]) -> None:
    train = {document.name for document in standard_library_documents("train")}
    validation = {document.name for document in held_out}
    assert not train & validation
    assert 0.04 < len(validation) / len(train | validation) < 0.2
    assert all(split_of(name) == "validation" for name in validation)
    # By the name alone: adding a module moves no other.
    assert [split_of(name) for name in ("json.decoder", "ast", "pickle")] == ["train", "train", "train"]


def test_predicts_held_out_text_as_its_card_says(held_out: list[LibraryText]) -> None:
    model = LanguageModel.from_pretrained("builtin")
    context = model.max_context
    assert context is not None
    nats = count = 0.0
    for document in held_out[::6]:
        ids = model.tokenizer(document.text, add_special_tokens=False).input_ids[: context - 1]
        tokens = torch.tensor([[model.bos_token_id, *ids]])
        logits = model.logits(tokens)[0, :-1].float()
        nats += float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += len(model.tokenizer.decode(ids).encode())
    stated = json.loads((FOLDER / "facts.json").read_text())["bits_per_byte"]
    # The beginnings of a few documents: licence texts are easier than the average, first lines harder.
    assert nats / math.log(2) / count == pytest.approx(stated, rel=0.25)


def test_tokenizer_gives_any_text_back(held_out: list[LibraryText]) -> None:
    tokenizer = LanguageModel.from_pretrained("builtin", sites=["resid_post.0"]).tokenizer
    text = held_out[0].text[:2000] + "\t\r\n  é 漢字 \N{PILE OF POO}"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
