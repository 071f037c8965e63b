"""Packing, splitting and resuming: every expected row is built here from the documents themselves."""

import io
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers.errors import refused
from lightsae.activations.corpus import rows as module
from lightsae.activations.corpus.open import check_corpus, open_documents
from lightsae.activations.corpus.rows import RowSource
from lightsae.activations.corpus.token_rows import TokenRows
from lightsae.activations.settings import DataSettings
from lightsae.errors import ConfigError, CorpusError
from lightsae.lm.vocabulary import Vocabulary

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
    opened.append(source := RowSource(config, Vocabulary.of(tokenizer), "validation"))
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
    opened.append(source := RowSource(config, Vocabulary.of(tokenizer), "train"))
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
    opened.append(reference := RowSource(config, Vocabulary.of(tokenizer), "train"))
    opened.append(other := RowSource(config, Vocabulary.of(tokenizer), "train"))
    opened.append(
        in_process := RowSource(DataSettings(**{**vars(config), "num_workers": 0}), Vocabulary.of(tokenizer), "train")
    )
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
    opened.append(source := RowSource(config, Vocabulary.of(tokenizer), "validation"))
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
        opened.append(RowSource(config, Vocabulary.of(tokenizer), "train"))
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
        opened.append(source := RowSource(config, Vocabulary.of(tokenizer), split))
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
    opened.append(source := RowSource(config, Vocabulary.of(None), "validation"))
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
    opened.append(source := RowSource(config, Vocabulary.of(tokenizer), "validation"))
    assert source.take(9).tokens[:, 1:].ravel().tolist() == joined(bare, eos)[0][:10]


def test_rows_of_ids_that_fit_are_taken_as_they_are(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, opened: list[RowSource]
) -> None:
    documents = np.random.default_rng(0).integers(2, 99, (20, 8)).tolist()
    path = write(tmp_path / "ids.jsonl", documents, column="input_ids")
    opened.append(
        source := RowSource(
            DataSettings(dataset=path, context_size=8, validation_split=path), Vocabulary.of(tokenizer), "train"
        )
    )
    rows = source.take(25)
    assert rows.tokens.tolist() == documents + documents[:5]
    assert rows.documents[:, 0].tolist() == rows.documents[:, 7].tolist() == list(range(25))
    write(tmp_path / "ids.jsonl", [*documents, [1, 2]], column="input_ids")
    opened.append(
        source := RowSource(
            DataSettings(dataset=path, context_size=8, validation_split=path), Vocabulary.of(tokenizer), "train"
        )
    )
    with pytest.raises(CorpusError, match=r"a row has 2 ids.*context_size \(8\)"):
        source.take(25)


def test_the_builtin_corpus(tokenizer: PreTrainedTokenizerFast, opened: list[RowSource]) -> None:
    config = DataSettings(dataset="builtin", context_size=64, num_workers=0)
    check_corpus(config)
    opened.append(source := RowSource(config, Vocabulary.of(tokenizer), "validation"))
    assert source.take(4).tokens.shape == (4, 64)
    assert "Python" in source.fingerprint


def test_an_encoder_begins_with_cls_and_separates_with_sep(tmp_path: Path, opened: list[RowSource]) -> None:
    raw = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "a": 3, "b": 4}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    bert = PreTrainedTokenizerFast(tokenizer_object=raw, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    path = write(tmp_path / "a.jsonl", ["a b", "b a", "a a"])
    opened.append(
        source := RowSource(
            DataSettings(dataset=path, validation_split=path, context_size=5), Vocabulary.of(bert), "validation"
        )
    )
    assert source.take(1).tokens.tolist() == [[0, 3, 4, 1, 4]]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_corpus_shorter_than_a_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, opened: list[RowSource], split: Any
) -> None:
    config = DataSettings(dataset=write(tmp_path / "a.jsonl", ["a", "b", "c"]), context_size=64)
    opened.append(source := RowSource(config, Vocabulary.of(tokenizer), split))
    with pytest.raises(CorpusError, match=rf"the {split} split has \d tokens.*shorter than one row of context_size"):
        source.take(1)


def test_text_that_becomes_no_token_ends_in_an_error(tmp_path: Path, opened: list[RowSource]) -> None:
    raw = Tokenizer(models.BPE({"a": 0}, []))  # no unknown token: other letters vanish
    path = write(tmp_path / "a.jsonl", ["b b", "b"])
    config = DataSettings(dataset=path, validation_split=path)
    opened.append(source := RowSource(config, Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=raw)), "train"))
    with pytest.raises(CorpusError, match="has 0 tokens"):
        source.take(1)


def test_text_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="without a tokenizer"):
        RowSource(DataSettings(dataset=write(tmp_path / "a.jsonl", texts(5))), Vocabulary.of(None), "train")


def test_bos_that_does_not_exist(tmp_path: Path) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    config = DataSettings(dataset=write(tmp_path / "a.jsonl", texts(5)), prepend_bos=True)
    with pytest.raises(ConfigError, match=r"prepend_bos is true"):
        RowSource(config, Vocabulary.of(plain), "train")


@pytest.mark.parametrize(
    "wrong", [{"validation_fraction": 0.0}, {"validation_fraction": 1.0}, {"context_size": 1}, {"num_workers": -1}]
)
def test_settings_that_cannot_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DataSettings(dataset="builtin", **wrong)


# -- token ids --------------------------------------------------------------------------------------------------------


def ids_source(path: Path, records: list[dict[str, Any]], vocabulary: Vocabulary, **settings: Any) -> RowSource:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {"context_size": 8, "num_workers": 0, "validation_split": str(path), **settings}
    return RowSource(DataSettings(dataset=str(path), **settings), vocabulary, "validation")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
@pytest.mark.parametrize("wrong", [-1, -100, -(1 << 40), 300, 1_000_000, 4_294_967_303, (1 << 31) - 1, 1 << 62])
def test_ids_that_the_embedding_lacks(tmp_path: Path, kind: str, wrong: int) -> None:
    rows = [{"input_ids": [5, 6, 299, 0, 7]}] * 4 + [{"input_ids": [8, wrong, 9]}] + [{"input_ids": [1, 2]}] * 4
    path = tmp_path / f"a.{kind}"
    table = datasets.Dataset.from_list(rows)
    if kind == "jsonl":
        write(path, [row["input_ids"] for row in rows], column="input_ids")
    elif kind == "parquet":
        table.to_parquet(path)
    else:
        datasets.DatasetDict(train=table, validation=table).save_to_disk(path)
    split = "validation" if kind == "arrow" else str(path)
    config = DataSettings(dataset=str(path), validation_split=split, context_size=4, num_workers=0)
    source = RowSource(config, Vocabulary(None, None, None, 300), "validation")
    with refused(CorpusError, rf"dataset holds the token id {wrong}, but the embedding of model has 0\.\.299; "):
        source.take(20)


def test_the_first_and_the_last_id_are_taken(tmp_path: Path) -> None:
    source = ids_source(tmp_path / "a.jsonl", [{"input_ids": [0, 299] * 4}], Vocabulary(None, None, None, 300))
    assert source.take(1).tokens.tolist() == [[0, 299] * 4]


def test_ids_above_the_embedding_that_the_tokenizer_makes(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "a.jsonl", texts())
    config = DataSettings(dataset=path, validation_split=path, context_size=8, num_workers=0)
    source = RowSource(config, Vocabulary.of(tokenizer, size=200), "train")
    with refused(CorpusError, r"dataset: the tokenizer makes the token id 2\d\d, but .* 0\.\.199; add rows"):
        source.take(1000)
    with refused(CorpusError, r"the tokenizer makes the token id 1, but the embedding of model has 0\.\.0"):
        RowSource(config, Vocabulary.of(tokenizer, size=1), "train")


@pytest.mark.filterwarnings("ignore:.*padding")
def test_what_is_padding_by_the_mask_is_in_no_row(tmp_path: Path, opened: list[RowSource]) -> None:
    records = [
        {"input_ids": [10, 11, 12, 0, 0, 0, 0, 0], "attention_mask": [1, 1, 1, 0, 0, 0, 0, 0]},
        {"input_ids": [0, 0, 0, 0, 20, 21, 22, 23], "attention_mask": [0, 0, 0, 0, 1, 1, 1, 1]},
        {"input_ids": [0] * 8, "attention_mask": [0] * 8},
        {"input_ids": [-100, 30], "attention_mask": [0, 1]},
        {"input_ids": list(range(40, 48)), "attention_mask": None},
        {"input_ids": list(range(50, 58)), "attention_mask": [1] * 8},
    ]
    ids = [[10, 11, 12], [20, 21, 22, 23], [30], list(range(40, 48)), list(range(50, 58))]
    opened.append(source := ids_source(tmp_path / "a.jsonl", records, Vocabulary(None, None, 9, 100)))
    with pytest.warns(UserWarning, match=r"attention_mask in a\.jsonl says is padding is in no row"):
        rows = everything(source)
    assert rows.tokens.ravel().tolist() == joined(ids, 9)[0][:24]


def test_full_rows_with_a_mask_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 99, (10, 8)).tolist()
    records = [{"input_ids": row, "attention_mask": [1] * 8} for row in rows]
    source = ids_source(tmp_path / "a.jsonl", records, Vocabulary(None, 1, 2, 100))
    assert everything(source).tokens.tolist() == rows


def test_a_mask_of_another_length(tmp_path: Path) -> None:
    records = [{"input_ids": [1, 2, 3], "attention_mask": [1, 1]}]
    with refused(CorpusError, r"an attention_mask in a\.jsonl has 2 entries, and the ids beside it are 3"):
        ids_source(tmp_path / "a.jsonl", records, Vocabulary.of(None))


# -- conversations ----------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{{ eos_token }}"
)
TALK = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": [{"type": "text", "text": "sat"}]}]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_conversations_are_written_out(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<eos>")
    own.chat_template = TEMPLATE
    talks = [[*TALK[:1], {"role": "assistant", "content": f"sat {i}"}] for i in range(20)]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write(path, talks, column="messages")
    else:
        datasets.Dataset.from_list([{"messages": talk} for talk in talks]).to_parquet(path)
    config = DataSettings(dataset=str(path), validation_split=str(path), context_size=8, num_workers=0)
    written = "[user]the cat[assistant]sat {}"
    source = RowSource(config, Vocabulary.of(own), "validation")
    ids = joined([ids_of(own, written.format(i)) for i in range(20)], own.eos_token_id)[0]
    rows = everything(source)
    assert rows.tokens[:, 1:].ravel().tolist() == ids[: rows.tokens[:, 1:].size]
    assert len(ids) - rows.tokens[:, 1:].size < 7


def test_the_text_of_a_message_in_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [TALK], column="messages")
    source = open_documents(DataSettings(dataset=path, validation_split=path), "train")
    assert source.read() == [TALK[0], {"role": "assistant", "content": "sat"}]


def test_conversations_that_cannot_be_written_out(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<eos>")
    own.chat_template = TEMPLATE
    path = write(tmp_path / "a.jsonl", [[{"role": "tool", "content": "x"}]], column="messages")
    with refused(CorpusError, r"the chat template of model does not take a conversation \(no tools\).* tool\."):
        RowSource(DataSettings(dataset=path, validation_split=path), Vocabulary.of(own), "train")
    path = write(tmp_path / "b.jsonl", [[{"from": "human", "value": "x"}]], column="messages")
    with refused(CorpusError, r"text_column is 'messages', and a message in b\.jsonl is no object with a role"):
        RowSource(DataSettings(dataset=path, validation_split=path), Vocabulary.of(own), "train")


def test_conversations_are_shared_out_by_their_content(tmp_path: Path) -> None:
    talks = [[{"role": "user", "content": str(i % 300)}] for i in range(600)]
    config = DataSettings(dataset=write(tmp_path / "a.jsonl", talks, column="messages"), validation_fraction=0.2)
    sides: dict[str, set[str]] = {}
    for split in ("train", "validation"):
        source, sides[split] = open_documents(config, split), set()
        while (document := source.read()) is not None:
            sides[split].add(document[0]["content"])
    assert sides["train"] | sides["validation"] == {str(i) for i in range(300)}
    assert not sides["train"] & sides["validation"]
    assert 30 <= len(sides["validation"]) <= 90
