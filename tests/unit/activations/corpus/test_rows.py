"""Packing, splitting and resuming: every expected row is built here from the documents themselves."""

import io
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lightsae.activations.corpus import rows as module
from lightsae.activations.corpus.open import check_corpus
from lightsae.activations.corpus.rows import RowSource, TokenRows
from lightsae.activations.settings import DataSettings
from lightsae.errors import ConfigError, CorpusError

WORDS = "the cat sat on a mat and saw Größe 数据 🙂 def f(x): return x + 1".split()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    raw.enable_truncation(8)  # as some tokenizer.json files carry it; it must not cut documents
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_DOCUMENTS", 5)
    monkeypatch.setattr(module, "_CHUNK_CHARACTERS", 400)


@pytest.fixture
def opened() -> Iterator[list[RowSource]]:
    sources: list[RowSource] = []
    yield sources
    for source in sources:
        source.close()


def texts(n: int = 60, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [f"{i} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 60))) for i in range(n)]


def write(path: Path, documents: list[Any], column: str = "text") -> str:
    path.write_text("".join(json.dumps({column: document}) + "\n" for document in documents))
    return str(path)


def ids_of(tokenizer: PreTrainedTokenizerFast, document: str) -> list[int]:
    return list(tokenizer.encode(document, add_special_tokens=False, truncation=False))


def joined(documents: list[list[int]], eos: int | None) -> tuple[list[int], list[int]]:
    tokens: list[int] = []
    numbers: list[int] = []
    for number, ids in enumerate(documents):
        if number and eos is not None:
            tokens.append(eos)
            numbers.append(number - 1)
        tokens += ids
        numbers += [number] * len(ids)
    return tokens, numbers


def everything(source: RowSource, n: int = 7) -> TokenRows:
    taken = []
    while len(rows := source.take(n)):
        taken.append(rows)
    return TokenRows(np.concatenate([r.tokens for r in taken]), np.concatenate([r.documents for r in taken]))


def equal(a: TokenRows, b: TokenRows) -> bool:
    return np.array_equal(a.tokens, b.tokens) and np.array_equal(a.documents, b.documents)


@pytest.mark.parametrize("prepend_bos", [None, True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_are_the_documents_joined_by_eos(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    opened: list[RowSource],
    num_workers: int,
    prepend_bos: bool | None,
) -> None:
    held_out = texts(seed=1)
    config = DataSettings(
        dataset=write(tmp_path / "a.jsonl", texts()),
        validation_split=write(tmp_path / "b.jsonl", held_out),
        context_size=16,
        prepend_bos=prepend_bos,
        num_workers=num_workers,
    )
    opened.append(source := RowSource(config, tokenizer, "validation"))
    rows = everything(source)
    tokens, numbers = joined([ids_of(tokenizer, d) for d in held_out], tokenizer.eos_token_id)
    payload = 16 if prepend_bos is False else 15
    end = len(tokens) // payload * payload
    assert rows.tokens.dtype == np.int32
    assert rows.tokens.shape == rows.documents.shape == (end // payload, 16)
    assert len(tokens) > 1000
    assert rows.tokens[:, 16 - payload :].ravel().tolist() == tokens[:end]
    assert rows.documents[:, 16 - payload :].ravel().tolist() == numbers[:end]
    if prepend_bos is not False:
        assert set(rows.tokens[:, 0].tolist()) == {tokenizer.bos_token_id}
        assert np.array_equal(rows.documents[:, 0], rows.documents[:, 1])
    assert len(source.take(3)) == 0


def test_training_goes_round_without_losing_a_token(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, opened: list[RowSource], caplog: pytest.LogCaptureFixture
) -> None:
    documents = texts(12)
    path = write(tmp_path / "a.jsonl", documents)
    config = DataSettings(dataset=path, validation_split=path, context_size=32, prepend_bos=False, num_workers=0)
    opened.append(source := RowSource(config, tokenizer, "train"))
    tokens, numbers = joined([ids_of(tokenizer, d) for d in documents * 3], tokenizer.eos_token_id)
    with caplog.at_level(logging.WARNING):
        rows = [source.take(1) for _ in range(len(tokens) // 32)]
    assert np.concatenate([r.tokens for r in rows]).ravel().tolist() == tokens[: len(rows) * 32]
    assert np.concatenate([r.documents for r in rows]).ravel().tolist() == numbers[: len(rows) * 32]
    assert source.epoch == 2
    assert len(caplog.records) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact_also_across_epochs(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, opened: list[RowSource], num_workers: int
) -> None:
    config = DataSettings(dataset=write(tmp_path / "a.jsonl", texts()), context_size=16, num_workers=num_workers)
    draw = random.Random(0)
    opened.append(reference := RowSource(config, tokenizer, "train"))
    opened.append(other := RowSource(config, tokenizer, "train"))
    opened.append(in_process := RowSource(DataSettings(**{**vars(config), "num_workers": 0}), tokenizer, "train"))
    epochs = set()
    for _ in range(30):
        state = through_checkpoint(reference.state_dict())
        n = draw.randint(0, 40)
        rows = reference.take(n)
        assert rows.tokens.shape == (n, 16)
        other.load_state_dict(state)
        assert other.state_dict() == state
        assert equal(other.take(n), rows)
        assert other.state_dict() == reference.state_dict()
        assert equal(in_process.take(n), rows)
        epochs.add(reference.epoch)
    assert len(epochs) > 2


def through_checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert len(file.getvalue()) < 4096
    return dict(torch.load(file, weights_only=True))


def test_going_back_to_a_state_gives_the_rows_again(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, opened: list[RowSource]
) -> None:
    config = DataSettings(dataset=write(tmp_path / "a.jsonl", texts()), context_size=16, validation_fraction=0.3)
    opened.append(source := RowSource(config, tokenizer, "validation"))
    start = source.state_dict()
    first = everything(source)
    end = source.state_dict()
    source.load_state_dict(start)
    assert equal(everything(source), first)
    source.load_state_dict(end)
    assert len(source.take(5)) == 0


def test_another_corpus_does_not_take_the_state(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, opened: list[RowSource]
) -> None:
    for name, n in (("a", 30), ("b", 31)):
        config = DataSettings(dataset=write(tmp_path / f"{name}.jsonl", texts(n)), context_size=16)
        opened.append(RowSource(config, tokenizer, "train"))
    with pytest.raises(CorpusError, match=r"dataset is now 'b.jsonl.*stopped in 'a.jsonl"):
        opened[1].load_state_dict(opened[0].state_dict())


def test_train_and_validation_share_no_document_and_leave_none_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, opened: list[RowSource]
) -> None:
    documents = texts(80)
    config = DataSettings(
        dataset=write(tmp_path / "a.jsonl", documents), context_size=2, prepend_bos=False, num_workers=0
    )
    seen = {}
    for split in ("train", "validation"):
        opened.append(source := RowSource(config, tokenizer, split))
        flat: list[int] = []
        while source.epoch == 0 and len(rows := source.take(1)):
            flat += rows.tokens.ravel().tolist()
        seen[split] = tokenizer.decode(flat, skip_special_tokens=False).split("<eos>")
    train, validation = set(seen["train"]) & set(documents), set(seen["validation"]) & set(documents)
    assert not train & validation
    assert 1 <= len(validation) <= 12
    # The last token of validation can be left over, and with it the end of a document.
    assert len(train) + len(validation) >= 79


def test_documents_of_ids_need_no_tokenizer(tmp_path: Path, opened: list[RowSource]) -> None:
    documents = [list(range(100 * i, 100 * i + 5 + i)) for i in range(1, 9)]
    path = write(tmp_path / "ids.jsonl", documents, column="input_ids")
    config = DataSettings(dataset=path, validation_split=path, context_size=8)
    opened.append(source := RowSource(config, None, "validation"))
    tokens, numbers = joined(documents, None)
    rows = everything(source)
    assert rows.tokens.ravel().tolist() == tokens[: rows.tokens.size]
    assert rows.documents.ravel().tolist() == numbers[: rows.tokens.size]
    assert len(tokens) - rows.tokens.size < 8


def test_documents_of_ids_are_not_wrapped_twice(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, opened: list[RowSource]
) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    bare = [[10, 11, 12], [20, 21], [30, 31, 32, 33]]
    path = write(tmp_path / "ids.jsonl", [[bos, *ids, eos] for ids in bare], column="tokens")
    config = DataSettings(dataset=path, validation_split=path, text_column="tokens", context_size=3)
    opened.append(source := RowSource(config, tokenizer, "validation"))
    assert source.take(9).tokens[:, 1:].ravel().tolist() == joined(bare, eos)[0][:10]


def test_rows_of_ids_that_fit_are_taken_as_they_are(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, opened: list[RowSource]
) -> None:
    documents = np.random.default_rng(0).integers(2, 99, (20, 8)).tolist()
    path = write(tmp_path / "ids.jsonl", documents, column="input_ids")
    opened.append(
        source := RowSource(DataSettings(dataset=path, context_size=8, validation_split=path), tokenizer, "train")
    )
    rows = source.take(25)
    assert rows.tokens.tolist() == documents + documents[:5]
    assert rows.documents[:, 0].tolist() == rows.documents[:, 7].tolist() == list(range(25))
    write(tmp_path / "ids.jsonl", [*documents, [1, 2]], column="input_ids")
    opened.append(
        source := RowSource(DataSettings(dataset=path, context_size=8, validation_split=path), tokenizer, "train")
    )
    with pytest.raises(CorpusError, match=r"a row has 2 ids.*context_size \(8\)"):
        source.take(25)


def test_the_builtin_corpus(tokenizer: PreTrainedTokenizerFast, opened: list[RowSource]) -> None:
    config = DataSettings(dataset="builtin", context_size=64, num_workers=0)
    check_corpus(config)
    opened.append(source := RowSource(config, tokenizer, "validation"))
    assert source.take(4).tokens.shape == (4, 64)
    assert "Python" in source.fingerprint


def test_an_encoder_begins_with_cls_and_separates_with_sep(tmp_path: Path, opened: list[RowSource]) -> None:
    raw = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "a": 3, "b": 4}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    bert = PreTrainedTokenizerFast(tokenizer_object=raw, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    path = write(tmp_path / "a.jsonl", ["a b", "b a", "a a"])
    opened.append(
        source := RowSource(DataSettings(dataset=path, validation_split=path, context_size=5), bert, "validation")
    )
    assert source.take(1).tokens.tolist() == [[0, 3, 4, 1, 4]]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_corpus_shorter_than_a_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, opened: list[RowSource], split: Any
) -> None:
    config = DataSettings(dataset=write(tmp_path / "a.jsonl", ["a", "b", "c"]), context_size=64)
    opened.append(source := RowSource(config, tokenizer, split))
    with pytest.raises(CorpusError, match=rf"the {split} split has \d tokens.*shorter than one row of context_size"):
        source.take(1)


def test_text_that_becomes_no_token_ends_in_an_error(tmp_path: Path, opened: list[RowSource]) -> None:
    raw = Tokenizer(models.BPE({"a": 0}, []))  # no unknown token: other letters vanish
    path = write(tmp_path / "a.jsonl", ["b b", "b"])
    config = DataSettings(dataset=path, validation_split=path)
    opened.append(source := RowSource(config, PreTrainedTokenizerFast(tokenizer_object=raw), "train"))
    with pytest.raises(CorpusError, match="has 0 tokens"):
        source.take(1)


def test_text_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no tokenizer"):
        RowSource(DataSettings(dataset=write(tmp_path / "a.jsonl", texts(5))), None, "train")


def test_bos_that_does_not_exist(tmp_path: Path) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    config = DataSettings(dataset=write(tmp_path / "a.jsonl", texts(5)), prepend_bos=True)
    with pytest.raises(ConfigError, match=r"prepend_bos is true"):
        RowSource(config, plain, "train")


@pytest.mark.parametrize(
    "wrong", [{"validation_fraction": 0.0}, {"validation_fraction": 1.0}, {"context_size": 1}, {"num_workers": -1}]
)
def test_settings_that_cannot_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DataSettings(dataset="builtin", **wrong)
