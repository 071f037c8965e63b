"""Token ids with a mask of the assistant's tokens beside them, as `apply_chat_template` and TRL write them."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from helpers.errors import refused
from lightsae.activations.corpus.rows import RowSource
from lightsae.activations.roles import ROLES
from lightsae.activations.settings import DataSettings
from lightsae.errors import CorpusError
from lightsae.lm.vocabulary import Vocabulary

BOS, EOS = 1, 2
VOCABULARY = Vocabulary(None, BOS, EOS, 100)
RECORDS: list[dict[str, Any]] = [
    {"input_ids": [BOS, 10, 11, 12, EOS], "assistant_masks": [0, 0, 1, 1, 1], "attention_mask": [1] * 5},
    {"input_ids": [0, 20, 21, 22], "assistant_masks": [1, 1, 0, 1], "attention_mask": [0, 1, 1, 1]},
    {"input_ids": [30, 31], "assistant_masks": None, "attention_mask": None},
    {"input_ids": [40], "assistant_masks": [1], "attention_mask": [1]},
]
# The separator behind the first is the EOS that the mask gives to the assistant.
ROW = [
    (BOS, "markup"), (10, "other"), (11, "assistant"), (12, "assistant"), (EOS, "assistant"),
    (20, "assistant"), (21, "other"), (22, "assistant"), (EOS, "markup"),
    (30, "text"), (31, "text"), (EOS, "markup"), (40, "assistant"),
]  # fmt: skip


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def corpus(path: Path, kind: str, **settings: Any) -> DataSettings:
    """Return the settings of `RECORDS` in a file of a kind, both sides the same."""
    table, split = datasets.Dataset.from_list(RECORDS), str(path)
    if kind == "jsonl":
        write(path, RECORDS)
    elif kind == "parquet":
        table.to_parquet(path)
    else:
        datasets.DatasetDict(train=table, validation=table).save_to_disk(path)
        split = "validation"
    return DataSettings(dataset=str(path), validation_split=split, num_workers=0, **settings)


@pytest.mark.filterwarnings("ignore:.*padding")
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_the_mask_says_whose_words_each_id_is(tmp_path: Path, kind: str) -> None:
    source = RowSource(corpus(tmp_path / f"a.{kind}", kind, context_size=13), VOCABULARY, "validation")
    assert source.conversations
    rows = source.take(1)
    assert rows.roles is not None
    assert list(zip(rows.tokens[0].tolist(), [ROLES[role] for role in rows.roles[0]], strict=True)) == ROW
    (chosen,) = rows.chosen(["assistant"], 0)
    assert rows.tokens[0, chosen].tolist() == [token for token, role in ROW if role == "assistant"]


@pytest.mark.filterwarnings("ignore:.*padding")
def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """At every token, behind the assistant's EOS among them, whose role is not to be had from the document after it."""
    config = corpus(tmp_path / "a.jsonl", "jsonl", context_size=2, prepend_bos=False)
    whole = RowSource(config, VOCABULARY, "train")
    for taken in range(1, 12):
        stopped, resumed = (RowSource(config, VOCABULARY, "train") for _ in range(2))
        whole.load_state_dict(RowSource(config, VOCABULARY, "train").state_dict())
        expected = whole.take(taken + 3).taken(slice(taken, None))
        stopped.take(taken)
        resumed.load_state_dict(stopped.state_dict())
        rows = resumed.take(3)
        assert np.array_equal(rows.tokens, expected.tokens)
        assert np.array_equal(rows.roles, expected.roles)


def test_rows_and_split_are_those_without_a_mask(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    plain = [{"input_ids": draw.integers(3, 99, int(draw.integers(4, 30))).tolist()} for _ in range(80)]
    masked = [one | {"assistant_masks": draw.integers(0, 2, len(one["input_ids"])).tolist()} for one in plain]
    for split in ("train", "validation"):
        rows = [
            RowSource(
                DataSettings(dataset=write(tmp_path / f"{name}.jsonl", records), context_size=8, num_workers=0),
                VOCABULARY,
                split,
            ).take(9)
            for name, records in (("plain", plain), ("masked", masked))
        ]
        assert np.array_equal(rows[0].tokens, rows[1].tokens)
        assert rows[0].roles is None
        assert rows[1].roles is not None


def test_rows_that_are_packed_already_keep_theirs(tmp_path: Path) -> None:
    record = {"input_ids": [BOS, 10, EOS, 20], "assistant_masks": [0, 1, 1, 0]}
    path = write(tmp_path / "a.jsonl", [record] * 3)
    config = DataSettings(dataset=path, validation_split=path, context_size=4, num_workers=0)
    rows = RowSource(config, VOCABULARY, "validation").take(3)
    assert rows.tokens.tolist() == [record["input_ids"]] * 3
    assert rows.chosen(["assistant"], 0).tolist() == [[False, True, True, False]] * 3


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ([1, 1], r"has 2 entries, and the ids beside it are 3\."),
        ([[0, 1, 1]], r"has 3 entries, and the ids beside it are 3\."),
        ([0, 1, 2], r"holds 2; write 1 where the assistant speaks, else 0\."),
        ([0, None, 1], r"holds None; write 1"),
        ([0, "1", 1], r"holds '1'; write 1"),
        ([0, 0.5, 1], r"holds 0\.5; write 1"),
    ],
)
def test_a_mask_that_is_none(tmp_path: Path, mask: list[Any], said: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"input_ids": [4, 5, 6], "assistant_masks": mask}])
    with refused(CorpusError, rf"dataset: an assistant_masks in a\.jsonl {said}"):
        RowSource(DataSettings(dataset=path, validation_split=path), VOCABULARY, "train")
