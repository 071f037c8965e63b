import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightsae.activations.corpus.rows import RowSource
from lightsae.activations.settings import DataSettings
from lightsae.analysis.reading.text import DocumentUses, TextRows, Texts
from lightsae.lm.load import load_tokenizer
from lightsae.lm.vocabulary import Vocabulary

S = 32


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("builtin", None, False)


def write(path: Path, lengths: list[int], seed: int) -> Path:
    """Documents that say their number in each line, so that each token can be traced."""
    texts = [("\n".join([f"value_{seed}{i:04d} = {i}"] * length)) for i, length in enumerate(lengths)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def corpus(folder: Path, held_out: list[int], training: list[int] | None = None) -> DataSettings:
    folder.mkdir(exist_ok=True, parents=True)
    train = write(folder / "train.jsonl", training or [10] * 20, 1)
    return DataSettings(
        dataset=str(train),
        validation_split=str(write(folder / "validation.jsonl", held_out, 2)),
        context_size=S,
        num_workers=0,
    )


def lengths(n: int, low: int, high: int, seed: int = 0) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(low, high, n).tolist()
    return drawn


def read_all(config: DataSettings, tokenizer: Any, share: float = 0.3, mining: int = 0) -> Texts:
    total = 10**6
    tokens, score_tokens = round((1 - share) * total), round(share * total)
    return Texts.read(config, Vocabulary.of(tokenizer), tokens=tokens, score_tokens=score_tokens, mining_tokens=mining)


def held_out_rows(config: DataSettings, tokenizer: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    source = RowSource(config, Vocabulary.of(tokenizer), "validation")
    rows = source.take(100_000)
    source.close()
    return zip(rows.tokens, rows.documents, strict=True)


def test_every_document_has_one_use_and_mixed_rows_are_left_out(tmp_path: Path, tokenizer: Any) -> None:
    config = corpus(tmp_path, lengths(80, 20, 120))
    texts = read_all(config, tokenizer)
    contexts, scores = (set(np.unique(rows.documents).tolist()) for rows in (texts.contexts, texts.scores))
    assert contexts
    assert scores
    assert not contexts & scores
    # Nothing else is lost: every row of the split is in one of the two, or was counted as left out.
    rows = list(held_out_rows(config, tokenizer))
    assert len(texts.contexts) + len(texts.scores) + texts.left_out == len(rows)
    for part in (texts.contexts, texts.scores):
        assert (np.diff(part.numbers) > 0).all()
        for ids, documents, number in zip(part.tokens, part.documents, part.numbers, strict=True):
            np.testing.assert_array_equal(ids, rows[number][0])
            np.testing.assert_array_equal(documents, rows[number][1])
    # And by what stands in them.
    named = [
        {name[:13] for name in tokenizer.decode(part.tokens.ravel()).split() if name.startswith("value_2")}
        for part in (texts.contexts, texts.scores)
    ]
    whole = [{name for name in names if len(name) == 11} for names in named]
    assert len(whole[0]) > 20
    assert len(whole[1]) > 10
    assert not whole[0] & whole[1]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_the_scores_get_their_share(share: float, tmp_path: Path, tokenizer: Any) -> None:
    texts = read_all(corpus(tmp_path, lengths(150, 20, 120)), tokenizer, share)
    found = len(texts.scores) / (len(texts.scores) + len(texts.contexts))
    assert found == pytest.approx(share, abs=0.05)
    # From all over the corpus, on both sides.
    last = max(texts.contexts.numbers[-1], texts.scores.numbers[-1])
    for part in (texts.contexts, texts.scores):
        assert part.numbers[0] < 0.3 * last
        assert part.numbers[-1] > 0.7 * last


def test_short_documents_leave_rows_for_both_uses(tmp_path: Path, tokenizer: Any) -> None:
    # A row holds several of them: dealt one by one, nearly every row would be mixed.
    texts = read_all(corpus(tmp_path, [1] * 2500), tokenizer)
    rows = len(texts.contexts) + len(texts.scores)
    assert texts.left_out < 0.15 * rows
    assert len(texts.scores) / rows == pytest.approx(0.3, abs=0.06)
    assert not set(texts.contexts.documents.ravel()) & set(texts.scores.documents.ravel())


def test_no_more_is_kept_than_was_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    config = corpus(tmp_path, lengths(200, 20, 120))
    texts = Texts.read(config, Vocabulary.of(tokenizer), tokens=10 * S, score_tokens=5 * S, mining_tokens=7 * S + 3)
    assert (len(texts.contexts), len(texts.scores), len(texts.mining)) == (10, 5, 7)
    assert texts.contexts.tokens.dtype == np.int32
    assert texts.contexts.tokens.shape == (10, S)


def test_the_training_text_is_not_read_twice(tmp_path: Path, tokenizer: Any) -> None:
    training = lengths(12, 5, 30)
    config = corpus(tmp_path, [30] * 20, training)
    mining = read_all(config, tokenizer, mining=10**6).mining
    source = RowSource(config, Vocabulary.of(tokenizer), "train")
    once = []
    while True:
        row = source.take(1)
        if source.epoch:
            break
        once.append(row.tokens[0])
    source.close()
    np.testing.assert_array_equal(mining.tokens, np.array(once))
    assert mining.documents.max() < len(training)
    assert mining.numbers.tolist() == list(range(len(once)))


def test_no_training_text_where_none_is_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    mining = read_all(corpus(tmp_path, [30] * 20), tokenizer).mining
    assert len(mining) == 0
    assert mining.tokens.shape == (0, S)


def test_the_same_corpus_gives_the_same_texts(tmp_path: Path, tokenizer: Any) -> None:
    one = read_all(corpus(tmp_path / "a", lengths(60, 5, 120)), tokenizer, mining=20 * S)
    two = read_all(corpus(tmp_path / "b", lengths(60, 5, 120)), tokenizer, mining=20 * S)
    for use in ("contexts", "scores", "mining"):
        a, b = getattr(one, use), getattr(two, use)
        for name in ("tokens", "documents", "numbers"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert one.left_out == two.left_out


def test_the_fingerprint_is_that_of_the_held_out_text(tmp_path: Path, tokenizer: Any) -> None:
    config = corpus(tmp_path, lengths(60, 5, 120))
    source = RowSource(config, Vocabulary.of(tokenizer), "validation")
    fingerprint = source.fingerprint
    source.close()
    assert read_all(config, tokenizer).fingerprint == fingerprint != ""
    write(Path(str(config.validation_split)), lengths(60, 5, 120, seed=1), 2)
    assert read_all(config, tokenizer).fingerprint != fingerprint


def test_uses_of_documents_do_not_change_when_they_go_on() -> None:
    draw = np.random.default_rng(0)
    documents = np.repeat(np.arange(400), draw.integers(1, 200, 400))
    uses, told = DocumentUses(0.25), []
    for start in range(0, len(documents) - S, S):
        row = documents[start : start + S]
        told += list(zip(row.tolist(), uses.is_for_scores(row).tolist(), strict=True))
    by_document = {document: {use for _, use in group} for document, group in groupby(sorted(told), lambda t: t[0])}
    assert all(len(found) == 1 for found in by_document.values())
    assert np.mean([use for _, use in told]) == pytest.approx(0.25, abs=0.02)
    assert not uses.scores & uses.contexts
    assert uses.scores | uses.contexts == set(by_document)


def test_rows_come_in_batches_from_any_row_on() -> None:
    rows = TextRows(np.arange(14, dtype=np.int32).reshape(7, 2), np.zeros((7, 2), np.int64), np.arange(10, 17))
    assert [part.numbers.tolist() for part in rows.batches(3)] == [[10, 11, 12], [13, 14, 15], [16]]
    assert [part.numbers.tolist() for part in rows.batches(3, start=6)] == [[16]]
    assert not list(rows.batches(3, start=7))


def test_rows_spread_over_the_text_from_first_to_last() -> None:
    tokens = np.arange(100, dtype=np.int32)[:, None]
    rows = TextRows(tokens, tokens.astype(np.int64) + 7, np.arange(100) * 2)
    few = rows.spread(4)
    assert few.tokens[:, 0].tolist() == [0, 33, 66, 99]
    assert few.documents[:, 0].tolist() == [7, 40, 73, 106]
    assert few.numbers.tolist() == [0, 66, 132, 198]
    assert len(rows.spread(100)) == len(rows.spread(1000)) == 100
    assert rows.spread(1).tokens.tolist() == [[0]]
    assert len(TextRows.gather([], 5).spread(3)) == 0
