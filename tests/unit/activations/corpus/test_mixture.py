"""Mixtures: tokens in proportion to the weights, the same after a resume, documents of each held out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.errors import refused
from lightsae.activations.corpus.mixture import MixedRows, open_rows
from lightsae.activations.corpus.rows import RowSource
from lightsae.activations.corpus.token_rows import TokenRows
from lightsae.activations.roles import ROLES
from lightsae.activations.settings import DataSettings, MixedDataset
from lightsae.errors import ConfigError, CorpusError
from lightsae.lm.vocabulary import Vocabulary

CONTEXT = 8
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
Make = Callable[..., MixedRows]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """`long` has few long documents, `short` many short ones, `talks` conversations."""
    for name, count, words in (("long", 12, 90), ("short", 300, 3)):
        lines = [json.dumps({"text": f"{name} {i} " * words}) + "\n" for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    talks = [
        [{"role": "user", "content": "q" * (i % 20)}, {"role": "assistant", "content": "a" * (i % 7)}]
        for i in range(200)
    ]
    lines = [json.dumps({"messages": talk}) + "\n" for talk in talks]
    (tmp_path / "talks.jsonl").write_text("".join(lines))
    (tmp_path / "turns.jinja").write_text(TURNS)
    return tmp_path


@pytest.fixture
def make(files: Path, byte_tokenizer: Any) -> Make:
    def build(
        split: str = "train", once: bool = False, workers: int = 0, roles: Any = None, **weights: float
    ) -> MixedRows:
        entries = [MixedDataset(name, float(weight), str(files / f"{name}.jsonl")) for name, weight in weights.items()]
        settings = DataSettings(
            datasets=entries, context_size=CONTEXT, num_workers=workers, validation_fraction=0.2, roles=roles,
            chat_template=str(files / "turns.jinja"),
        )  # fmt: skip
        rows = open_rows(settings, Vocabulary.of(byte_tokenizer), split, once=once)  # type: ignore[arg-type]
        assert isinstance(rows, MixedRows)
        return rows

    return build


def equal(a: TokenRows, b: TokenRows) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("tokens", "documents", "roles", "datasets")]
    return all((x is None and y is None) or np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("weights", [(2, 1), (1, 1), (0.1, 0.7)])
def test_tokens_come_in_proportion_at_every_place(make: Make, weights: tuple[float, float]) -> None:
    rows = make(long=weights[0], short=weights[1]).take(600)
    assert rows.datasets is not None
    of_long = np.cumsum(rows.datasets == 0)
    expected = np.arange(1, 601) * weights[0] / sum(weights)
    assert np.abs(of_long - expected).max() <= 1


def test_a_dataset_has_the_rows_that_it_has_alone(make: Make, files: Path, byte_tokenizer: Any) -> None:
    rows = make(long=1, short=2).take(300)
    for number, name in enumerate(("long", "short")):
        alone = RowSource(
            DataSettings(
                dataset=str(files / f"{name}.jsonl"), context_size=CONTEXT, num_workers=0, validation_fraction=0.2
            ),
            Vocabulary.of(byte_tokenizer),
            "train",
        )
        mine = rows.taken(np.flatnonzero(rows.datasets == number))
        expected = alone.take(len(mine))
        assert np.array_equal(mine.tokens, expected.tokens)
        assert np.array_equal(mine.documents, expected.documents * 2 + number)


def test_tokens_of_the_roles_are_counted_where_roles_are_chosen(make: Make) -> None:
    rows = make(roles=["assistant", "text"], talks=1, short=1).take(400)
    assert rows.roles is not None
    assert rows.datasets is not None
    chosen = np.isin(rows.roles, [ROLES.index("assistant"), ROLES.index("text")])
    of_talks, of_short = (chosen[rows.datasets == number].sum() for number in (0, 1))
    assert abs(of_talks - of_short) <= CONTEXT
    assert (rows.datasets == 0).sum() > 2 * (rows.datasets == 1).sum()
    # Separators and BOS of plain text are markup.
    assert set(np.unique(rows.roles[rows.datasets == 1])) == {ROLES.index("markup"), ROLES.index("text")}


@pytest.mark.parametrize("stop", [0, 1, 64, 150])
def test_resumed_it_goes_on_with_the_same_rows(make: Make, stop: int) -> None:
    settings: dict[str, Any] = {"roles": ["assistant", "text"], "talks": 1, "short": 2}
    whole = make(**settings).take(300)
    first = make(workers=2, **settings)
    before = first.take(stop)
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    second = make(**settings)
    second.load_state_dict(state)
    assert second.state_dict() == state
    parts = [part for part in (before, second.take(90), second.take(60)) if len(part)]
    again = TokenRows.joined(parts)
    assert equal(again, whole.taken(slice(len(again))))


def test_a_dataset_that_runs_out_begins_again_and_says_so(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    rows = make(long=1, short=1)
    rows.take(3000)
    said = [record.message for record in caplog.records if "read again" in record.message]
    assert len(said) == 2
    assert {name.epoch > 0 for name in rows.sources.values()} == {True}


def test_held_out_documents_are_of_each_and_in_no_training_row(make: Make, byte_tokenizer: Any) -> None:
    def documents(split: str, once: bool) -> dict[int, set[str]]:
        rows = make(split, once=once, long=1, short=1).take(100_000)
        assert rows.datasets is not None
        texts = {number: byte_tokenizer.decode(rows.tokens[rows.datasets == number, 1:].ravel()) for number in (0, 1)}
        return {
            number: {words[: words.find(" ", 6)] for words in text.split("<eos>")[1:-1]}
            for number, text in texts.items()
        }

    training, held_out = documents("train", True), documents("validation", False)
    for number in (0, 1):
        assert held_out[number]
        assert not training[number] & held_out[number]


def test_another_mixture_does_not_go_on(make: Make) -> None:
    state = make(long=1, short=2).state_dict()
    with refused(CorpusError, r"datasets are now '1 x short.* Resume with the same datasets and weights"):
        make(short=1, long=2).load_state_dict(state)
    with refused(CorpusError, "Resume with the same datasets and weights"):
        make(long=1, short=3).load_state_dict(state)


def test_a_dataset_without_a_token_of_the_roles(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightsae.activations.corpus.mixture._HOPELESS", 20)
    with refused(CorpusError, r"datasets: in 20 rows of 'talks' there is no token of roles tool"):
        make(roles=["tool", "text"], talks=1, short=1).take(100)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"datasets": []}, r"datasets is \[\]; name one or more"),
        ({"datasets": [MixedDataset("a", 0.0)]}, r"datasets\.a\.weight is 0\.0; it must be above 0"),
        ({"datasets": [MixedDataset("a", -1.0)]}, r"datasets\.a\.weight is -1\.0; it must be above 0"),
        ({"datasets": [MixedDataset("a"), MixedDataset("a", 2.0)]}, r"datasets names 'a' twice"),
        ({"datasets": [MixedDataset("user", 1.0, "builtin")]}, r"datasets: 'user' is no name for a dataset"),
        (
            {"datasets": [MixedDataset("a")], "dataset": "b"},
            r"dataset is 'b'; but there is datasets, too; leave it out",
        ),
        (
            {"datasets": [MixedDataset("a")], "validation_split": "b"},
            r"validation_split is 'b'; .* write it in the entr",
        ),
        ({"datasets": [MixedDataset("synthetic")]}, r"datasets: 'synthetic' is no text"),
        ({"dataset": "a", "roles": []}, r"roles is \[\]; write some of markup"),
        ({"dataset": "a", "roles": ["asistant"]}, r"roles is 'asistant'; .* Did you mean 'assistant'"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], said: str) -> None:
    with refused(ConfigError, said):
        DataSettings(**settings)


def test_an_entry_in_which_something_is_wrong_is_named(make: Make, files: Path, byte_tokenizer: Any) -> None:
    entries = [MixedDataset("long", dataset=str(files / "long.jsonl"), text_column="body")]
    with refused(CorpusError, r"datasets\.long\.text_column is 'body', but long\.jsonl has 'text'"):
        open_rows(DataSettings(datasets=entries, num_workers=0), Vocabulary.of(byte_tokenizer), "train")
