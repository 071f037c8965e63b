"""Every kind of corpus: what its documents are, that a cursor resumes exactly, and what each mistake says."""

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.errors import refused
from lightsae.activations.corpus import hub, text_files
from lightsae.activations.corpus import open as open_module
from lightsae.activations.corpus.builtin import LibraryText
from lightsae.activations.corpus.documents import DocumentSource, Split
from lightsae.activations.corpus.open import check_corpus, open_documents
from lightsae.activations.settings import DataSettings
from lightsae.errors import CorpusError

DOCUMENTS = [f"story {i}\n\nGröße {'x' * i}" for i in range(40)]
ROWS = [{"n": i, "text": document} for i, document in enumerate(DOCUMENTS)]
IDS = [list(range(i, 2 * i + 1)) for i in range(1, 40)]


def write_lines(path: Path, rows: list[Any] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def jsonl(folder: Path) -> str:
    return str(write_lines(folder / "a.jsonl"))


def json_list(folder: Path) -> str:
    (folder / "a.json").write_text("\ufeff" + json.dumps(ROWS, indent=1))
    return str(folder / "a.json")


def json_lines(folder: Path) -> str:
    return str(write_lines(folder / "a.json"))


def parquet(folder: Path) -> str:
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "a.parquet", batch_size=7)
    return str(folder / "a.parquet")


def separated_text(folder: Path) -> str:
    (folder / "a.txt").write_text("\n<|endoftext|>\n".join(DOCUMENTS))
    return str(folder / "a.txt")


def many_files(folder: Path) -> str:
    for i, document in enumerate(DOCUMENTS):
        (folder / f"part_{i}.txt").write_text(document)
    return str(folder)


def pattern(folder: Path) -> str:
    for i in range(12):  # chunk_2 comes before chunk_10
        write_lines(folder / f"chunk_{i}.jsonl", ROWS[i * 4 : i * 4 + 4])
    return str(folder / "chunk_*.jsonl")


def mixed_folder(folder: Path) -> str:
    (folder / "sub").mkdir()
    (folder / ".cache").mkdir()
    write_lines(folder / "1.jsonl", ROWS[:30])
    write_lines(folder / "sub" / "2.jsonl", ROWS[30:])
    write_lines(folder / ".cache" / "3.jsonl")
    (folder / "LICENSE.txt").write_text("not a document")
    (folder / "9.jsonl").touch()
    return str(folder)


def saved(folder: Path) -> str:
    datasets.Dataset.from_list(ROWS).with_format("torch").save_to_disk(folder / "saved")
    return str(folder / "saved")


def saved_dict(folder: Path) -> str:
    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:3])}
    datasets.DatasetDict(splits).save_to_disk(folder / "saved")
    return str(folder / "saved")


KINDS = [
    jsonl, json_list, json_lines, parquet, separated_text, many_files, pattern, mixed_folder, saved, saved_dict,
]  # fmt: skip


def whole(config: DataSettings) -> DocumentSource:
    """Open the training split without anything held out."""
    source = open_documents(config, "train")
    return source._source


def read_all(source: DocumentSource) -> Iterator[Any]:
    while (document := source.read()) is not None:
        yield document


@pytest.fixture(autouse=True)
def few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_ROWS_AT_A_TIME", 3)


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("kind", KINDS)
def test_documents_come_in_order_and_from_any_cursor(kind: Callable[[Path], str], tmp_path: Path) -> None:
    config = DataSettings(dataset=kind(tmp_path))
    check_corpus(config)
    source = whole(config)
    cursors = [source.cursor()]
    documents = []
    for document in read_all(source):
        documents.append(document)
        cursors.append(source.cursor())
    assert documents == DOCUMENTS
    assert source.read() is None
    for number in random.Random(0).sample(range(len(cursors)), 12):
        source.seek(cursors[number])
        assert source.cursor() == cursors[number]
        assert list(read_all(source)) == DOCUMENTS[number:]
    source.close()
    assert str(tmp_path) not in source.fingerprint
    assert whole(config).fingerprint == source.fingerprint


def test_a_resumed_jsonl_is_not_read_from_the_start(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl")
    source = whole(DataSettings(dataset=str(path)))
    for _ in range(30):
        source.read()
    cursor = source.cursor()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"".join(b"?" * (len(line) - 1) + b"\n" for line in lines[1:30]) + b"".join(lines[30:]))
    source.seek(cursor)
    assert list(read_all(source)) == DOCUMENTS[30:]


@pytest.mark.parametrize("name", ["input_ids", "tokens"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_columns_of_ids(kind: str, name: str, tmp_path: Path) -> None:
    rows = [{name: ids} for ids in IDS]
    path = tmp_path / f"a.{kind}"
    write_lines(path, rows) if kind == "jsonl" else datasets.Dataset.from_list(rows).to_parquet(path)
    text_column = "text" if name == "input_ids" else name
    documents = list(read_all(whole(DataSettings(dataset=str(path), text_column=text_column))))
    assert [document.tolist() for document in documents] == IDS
    assert {document.dtype for document in documents} == {np.dtype(np.int32)}


def test_blank_and_missing_text_is_passed_over(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": None}, {"text": " \n"}, {"n": 1}, {"text": "b \ud800"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    source = open_documents(DataSettings(dataset=str(path), validation_split=str(path)), "train")
    assert list(read_all(source)) == ["a", "b ?"]


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ""])
def test_a_long_text_without_separators_is_cut_without_loss(separator: str, tmp_path: Path) -> None:
    text = separator.join(["naïve 数据 🙂".replace(" ", "_") * 5] * 400)
    (tmp_path / "a.txt").write_text(text)
    documents = list(read_all(whole(DataSettings(dataset=str(tmp_path / "a.txt")))))
    assert len(documents) > 10
    assert max(len(document.encode()) for document in documents) <= 1024
    assert "".join(documents).replace("\n", "") == text.replace("\n", "")


def test_a_short_text_among_others_is_one_document(tmp_path: Path) -> None:
    text = "\r\n\r\n".join(["paragraph"] * 300)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(text.encode())
    assert list(read_all(whole(DataSettings(dataset=str(tmp_path))))) == [text.replace("\r\n", "\n")] * 2


def test_a_long_document_between_separators_stays_whole(tmp_path: Path) -> None:
    documents = ["a\n\n" * 30_000 + "a", "b"] * 3
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(documents))
    assert list(read_all(whole(DataSettings(dataset=str(tmp_path / "a.txt"))))) == documents


# -- splits -----------------------------------------------------------------------------------------------------------


def split_of(config: DataSettings, split: Split) -> list[str]:
    return list(read_all(open_documents(config, split)))


def test_the_share_held_out_is_stable_and_disjoint(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(2000)]
    config = DataSettings(dataset=str(write_lines(tmp_path / "a.jsonl", [{"text": t} for t in [*texts, *texts[:500]]])))
    train, validation = split_of(config, "train"), split_of(config, "validation")
    assert not set(train) & set(validation)  # also of the documents that occur twice
    assert set(train) | set(validation) == set(texts)
    assert 0.03 < len(validation) / 2500 < 0.07
    # Other documents in front change nothing for those that were there.
    more = [{"text": t} for t in ["new 1", "new 2", *texts]]
    config = DataSettings(dataset=str(write_lines(tmp_path / "b.jsonl", more)))
    assert len(set(split_of(config, "validation")) ^ set(validation)) <= 2


@pytest.mark.parametrize("n", [2, 3, 10, 25])
def test_few_documents_still_give_a_validation_split(n: int, tmp_path: Path) -> None:
    config = DataSettings(dataset=str(write_lines(tmp_path / "a.jsonl", ROWS[:n])), validation_fraction=0.01)
    assert len(split_of(config, "validation")) >= 1
    assert len(split_of(config, "train")) >= n - 2


def test_named_splits(tmp_path: Path) -> None:
    config = DataSettings(dataset=saved_dict(tmp_path), validation_split="test")
    assert split_of(config, "train") == DOCUMENTS
    assert split_of(config, "validation") == DOCUMENTS[:3]
    held_out = write_lines(tmp_path / "held_out.jsonl", ROWS[:5])
    config = DataSettings(dataset=jsonl(tmp_path), validation_split=str(held_out))
    check_corpus(config)
    assert split_of(config, "train") == DOCUMENTS
    assert split_of(config, "validation") == DOCUMENTS[:5]


# -- the Hub, played by local files -----------------------------------------------------------------------------------


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Serve `owner/stories` from a parquet file, and note what was asked for."""
    path = parquet(tmp_path)
    real = datasets.load_dataset
    asked: list[dict[str, Any]] = []

    def load_dataset(name: str, config: str | None, **options: Any) -> Any:
        asked.append({"name": name, "config": config, **options})
        return real(
            "parquet", data_files={"train": path}, cache_dir=str(tmp_path / "cache"),
            split=options["split"], streaming=options["streaming"],
        )  # fmt: skip

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("streaming", [True, False])
def test_hub_datasets(streaming: bool, fake_hub: list[dict[str, Any]]) -> None:
    config = DataSettings(
        dataset="owner/stories",
        dataset_config="small",
        dataset_revision="v1",
        streaming=streaming,
        validation_split="train",
    )
    source = open_documents(config, "train")
    assert fake_hub == [
        {"name": "owner/stories", "config": "small", "split": "train", "revision": "v1", "streaming": streaming}
    ]
    assert source.fingerprint.startswith("owner/stories small train v1")
    start = source.cursor()
    assert [source.read() for _ in range(17)] == DOCUMENTS[:17]
    cursor = json.loads(json.dumps(source.cursor()))
    assert list(read_all(source)) == DOCUMENTS[17:]
    assert source.read() is None
    source.seek(start)
    assert list(read_all(source)) == DOCUMENTS
    other = open_documents(config, "train")
    for _ in range(2):
        other.seek(cursor)
        assert list(read_all(other)) == DOCUMENTS[17:]
    other.close()
    source.close()


@pytest.mark.parametrize("streaming", [True, False])
def test_hub_split_and_column_errors(streaming: bool, fake_hub: list[dict[str, Any]]) -> None:
    with pytest.raises(CorpusError, match=r"text_column is 'txt', but .*'text'.*Did you mean 'text'"):
        open_documents(DataSettings(dataset="owner/stories", text_column="txt", streaming=streaming), "train")
    with pytest.raises(CorpusError, match=r"dataset_split is 'trian': .*train"):
        open_documents(DataSettings(dataset="owner/stories", dataset_split="trian", streaming=streaming), "train")


def test_check_of_a_hub_dataset_reads_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    class Builder:
        info = datasets.DatasetInfo(
            features=datasets.Features({"body": datasets.Value("string")}),
            splits=datasets.SplitDict({"train": datasets.SplitInfo("train")}),
        )

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **options: Builder)
    check_corpus(DataSettings(dataset="owner/stories", text_column="body", dataset_split="train[:10%]"))
    for wrong, message in (
        ({}, r"text_column is 'text', but owner/stories has 'body'"),
        ({"dataset_split": "trian"}, r"dataset_split is 'trian', but .*Did you mean 'train'"),
        ({"validation_split": "valid"}, r"validation_split is 'valid', but owner/stories has 'train'"),
    ):
        with pytest.raises(CorpusError, match=message):
            check_corpus(DataSettings(dataset="owner/stories", **wrong))


@pytest.mark.parametrize("check", [check_corpus, lambda config: open_documents(config, "train")])
def test_unknown_or_unreachable_hub_dataset(
    check: Callable[[DataSettings], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "stories.jsonl")
    with pytest.raises(CorpusError, match=r"dataset is 'storys'.*cannot be reached.*Did you mean 'stories.jsonl'"):
        check(DataSettings(dataset="storys"))
    with pytest.raises(CorpusError, match=r"dataset is 'builtn'.*Did you mean 'builtin'"):
        check(DataSettings(dataset="builtn"))


def test_unknown_hub_configuration() -> None:
    config = DataSettings(dataset="owner/stories", dataset_config="smal")
    with (
        pytest.raises(CorpusError, match=r"dataset_config is 'smal': .*Available: \['small'\]"),
        hub._hub_errors(config, "dataset_split"),
    ):
        raise ValueError("BuilderConfig 'smal' not found. Available: ['small']")


# -- mistakes ---------------------------------------------------------------------------------------------------------


def case(message: str, **settings: Any) -> Any:
    return pytest.param(settings, message, id=message[:40])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        case(r"'.*storys\.jsonl', which does not exist\. Did you mean 'stories\.jsonl'", dataset="storys.jsonl"),
        case(r"does not exist: there is no folder '.*nowhere'", dataset="nowhere/a.jsonl"),
        case(r"dataset is '.*empty\.jsonl', which is empty", dataset="empty.jsonl"),
        case(r"dataset is '.*blank\.txt', and there is no text in its train split", dataset="blank.txt"),
        case(r"must end in \.parquet, \.jsonl, \.ndjson, \.json, \.csv, \.txt .*\.gz", dataset="notes.md"),
        case(r"a folder without .* files", dataset="folder"),
        case(r"a pattern that matches no .* file", dataset="folder/*.jsonl"),
        case(r"text_column is 'txet', but .* has 'n', 'text'\. Did you mean 'text'", text_column="txet"),
        case(r"text_column is 'n', which holds int values", text_column="n"),
        case(r"not JSON", dataset="broken.jsonl"),
        case(r"broken\.json is not JSON", dataset="broken.json"),
        case(r"numbers\.json holds int values, not objects with a 'text'", dataset="numbers.json"),
        case(r"broken\.parquet is not a readable parquet file", dataset="broken.parquet"),
        case(r"validation_split is '.*valid', which does not exist", validation_split="valid"),
        case(r"dataset_config is 'small', but dataset is local files", dataset_config="small"),
        case(r"dataset_split is 'test', but dataset is local files", dataset_split="test"),
        case(r"validation_split is 'test', but dataset is builtin", dataset="builtin", validation_split="test"),
        case(r"'tset', but saved has 'train', 'test'\. Did you mean 'test'", dataset="saved", validation_split="tset"),
    ],
)  # fmt: skip
def test_mistakes(settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "stories.jsonl")
    saved_dict(tmp_path)
    (tmp_path / "folder").mkdir()
    for name, content in {
        "empty.jsonl": "", "blank.txt": " \n", "notes.md": "a", "folder/notes.md": "a", "broken.jsonl": '{"text": "a"',
        "broken.json": "[{", "numbers.json": "[1, 2]", "broken.parquet": "PAR1 no",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(content)
    name = settings.pop("dataset", "stories.jsonl")
    config = DataSettings(dataset=name if name == "builtin" else str(tmp_path / name), **settings)
    with pytest.raises(CorpusError, match=message) as caught:
        check_corpus(config)
    assert "\n" not in str(caught.value)


def test_a_single_document_cannot_be_shared(tmp_path: Path) -> None:
    config = DataSettings(dataset=str(write_lines(tmp_path / "a.jsonl", ROWS[:1])))
    with pytest.raises(CorpusError, match=r"only one document.*validation_split"):
        check_corpus(config)


def test_a_damaged_saved_dataset(tmp_path: Path) -> None:
    config = DataSettings(dataset=saved(tmp_path))
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"no table")
    with pytest.raises(CorpusError, match=r"dataset is '.*saved', a saved dataset that cannot be read"):
        check_corpus(config)


def test_a_saved_dataset_whose_offsets_point_beyond_it(tmp_path: Path) -> None:
    """What lies there in memory would be read as text, or the process would end."""
    config = DataSettings(dataset=saved(tmp_path))
    path = next((tmp_path / "saved").glob("*.arrow"))
    ends = np.cumsum([len(row["text"].encode()) for row in ROWS], dtype="<i4")
    whole, last = path.read_bytes(), ends[-3:].tobytes()
    assert whole.count(last) == 1
    path.write_bytes(whole.replace(last, (ends[-3:] + np.array([0, 40, 40], "<i4")).tobytes()))
    source = open_documents(config, "train")
    with pytest.raises(CorpusError, match=r"dataset: saved cannot be read \(") as caught:
        list(iter(source.read, None))
    assert "\n" not in str(caught.value)


def test_a_parquet_file_with_damage_within(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i} " * 9 for i in range(2000)]}), path, row_group_size=500)
    whole, said = path.read_bytes(), []
    for place in range(4, len(whole) - 400, len(whole) // 40):
        path.write_bytes(whole[:place] + b"\xff" * 40 + whole[place + 40 :])
        try:
            list(iter(open_documents(DataSettings(dataset=str(path)), "train").read, None))
        except CorpusError as error:
            said.append(str(error))
    assert len(said) > 10
    assert all("a.parquet is not a readable parquet file" in message and "\n" not in message for message in said)


@pytest.mark.parametrize("kind", [jsonl, json_list, separated_text])
def test_a_file_that_may_not_be_read(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataSettings(dataset=kind(tmp_path))

    def refuse(*args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", "a.file")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CorpusError, match=r"dataset: a\.file cannot be read"):
        check_corpus(config)


# -- compressed files, CSV, and which files of a folder are read -----------------------------------------------------


def csv_table(folder: Path) -> str:
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["n", "text"])
        writer.writeheader()
        writer.writerows(ROWS)
    return str(folder / "a.csv")


def compressed(kind: Callable[[Path], str], suffix: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        plain = Path(kind(folder))
        path = plain.with_name(plain.name + suffix)
        codec = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}[suffix]
        half = plain.stat().st_size // 2
        # In two members, as `cat a.gz b.gz` makes them.
        with path.open("wb") as whole:
            for part in (plain.read_bytes()[:half], plain.read_bytes()[half:]):
                sink = pa.BufferOutputStream()
                with pa.CompressedOutputStream(sink, codec) as stream:
                    stream.write(part)
                whole.write(sink.getvalue().to_pybytes())
        plain.unlink()
        return str(path)

    return make


def ndjson(folder: Path) -> str:
    return str(write_lines(folder / "a.ndjson"))


COMPRESSED = [
    compressed(kind, suffix)
    for kind in (jsonl, json_list, json_lines, csv_table, separated_text)
    for suffix in (".gz", ".zst", ".bz2")
]


@pytest.mark.parametrize("kind", [csv_table, ndjson, *COMPRESSED])
def test_further_kinds_are_read_from_any_cursor(kind: Callable[[Path], str], tmp_path: Path) -> None:
    test_documents_come_in_order_and_from_any_cursor(kind, tmp_path)


def test_csv_with_quotes_short_rows_and_long_fields(tmp_path: Path) -> None:
    long = "word " * 100_000
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbfid,text\r\n1,"say ""hi"",\r\n\r\nthen go"\r\n2\r\n3,\r\n4,"' + long.encode() + b'"\r\n5,x,y,z\r\n'
    )
    config = DataSettings(dataset=str(tmp_path / "a.csv"), validation_split=str(tmp_path / "a.csv"))
    assert list(read_all(open_documents(config, "train"))) == ['say "hi",\r\n\r\nthen go', long, "x"]


def test_a_quote_that_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_LONGEST_FIELD", 1 << 18)
    (tmp_path / "a.csv").write_text('text\n"' + "word\n" * 100_000)
    before = csv.field_size_limit(1)
    try:
        with refused(CorpusError, r"a\.csv is no CSV after byte \d+ \(field larger than field limit \(262144\)\)"):
            check_corpus(DataSettings(dataset=str(tmp_path / "a.csv")))
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("damage", ["cut", "other", "tail"])
def test_damaged_compression(suffix: str, damage: str, tmp_path: Path) -> None:
    path = Path(compressed(jsonl, suffix)(tmp_path))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-9], "other": b"text" + whole, "tail": whole + b"rest"}[damage])
    with refused(CorpusError, rf"dataset: a\.jsonl\{suffix} cannot be decompressed \(.*\)\."):
        list(read_all(open_documents(DataSettings(dataset=str(path)), "train")))


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("before", [1, 7, 900])
def test_first_records_without_the_column_are_passed_over(kind: str, before: int, tmp_path: Path) -> None:
    rows = [{"meta": i} for i in range(before - 1)] + [3, *ROWS, {"meta": 1}, *ROWS[:2]]
    path = tmp_path / f"a.{kind}"
    write_lines(path, rows) if kind == "jsonl" else path.write_text(json.dumps(rows))
    source = open_documents(DataSettings(dataset=str(path), validation_split=str(path)), "train")
    first = source.read()
    cursor = source.cursor()
    assert [first, *read_all(source)] == [*DOCUMENTS, *DOCUMENTS[:2]]
    source.seek(cursor)
    assert list(read_all(source)) == [*DOCUMENTS[1:], *DOCUMENTS[:2]]


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_file_in_which_no_record_has_the_column(kind: str, tmp_path: Path) -> None:
    rows = [{"title": "a"}, {"body": "b"}] * 20_000
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write_lines(path, rows)
        with path.open("a") as file:
            file.write("not JSON, and too far behind to be read")
    else:
        path.write_text(json.dumps(rows))
    with refused(CorpusError, rf"text_column is 'bodi', but a\.{kind} has 'body', 'title'\. Did you mean 'body'"):
        check_corpus(DataSettings(dataset=str(path), text_column="bodi"))


FOLDERS = {
    "many texts and few lines": ({"1.txt": 400, "2.txt": 300, "few.jsonl": 3}, ["1.txt", "2.txt"], "few.jsonl"),
    "lines and a licence": ({"a.jsonl": 30, "b.jsonl": 30, "LICENSE.txt": 1}, ["a.jsonl", "b.jsonl"], "LICENSE.txt"),
    "one stray json": ({"1.txt": 300, "info.json": 1}, ["1.txt"], "info.json"),
    "lines of three names": ({"a.jsonl": 9, "b.ndjson": 9, "c.jsonl": 9}, ["a.jsonl", "b.ndjson", "c.jsonl"], None),
    "one kind and what is none": ({"a.txt": 9, "notes.md": 99, "b.parquet.gz": 99}, ["a.txt"], None),
}


@pytest.mark.parametrize("case", FOLDERS)
@pytest.mark.parametrize("name", ["", "/*"])
def test_the_kind_with_the_most_bytes_is_the_corpus_and_the_rest_is_said(case: str, name: str, tmp_path: Path) -> None:
    files, read, left_out = FOLDERS[case]
    for file, size in files.items():
        if file.endswith((".jsonl", ".ndjson")):
            write_lines(tmp_path / file, [{"text": f"{file} {i}"} for i in range(size)])
        else:
            (tmp_path / file).write_text(f"{file} " * size)
    expected = pytest.warns(UserWarning, match=rf"left out: {left_out}\.") if left_out else nullcontext()
    with expected:
        source = open_documents(DataSettings(dataset=str(tmp_path) + name, validation_split=str(tmp_path)), "train")
    found = dict.fromkeys(document.split()[0] for document in read_all(source))
    assert list(found) == read


# -- files that change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [jsonl, json_lines, csv_table, separated_text, many_files, parquet, saved])
def test_the_digests_follow_what_the_files_hold(kind: Callable[[Path], str], tmp_path: Path) -> None:
    config = DataSettings(dataset=kind(tmp_path))
    before = whole(config).contents()
    assert whole(config).contents() == before
    assert str(tmp_path) not in str(before)
    path = max((path for path in tmp_path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    place = data.index(b"story")
    data[place : place + 5] = b"STORY"
    path.write_bytes(data)
    assert whole(config).contents() != before


def test_the_digest_of_builtin_is_of_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_documents(DataSettings(dataset="builtin"), "validation").contents()
    assert before == open_documents(DataSettings(dataset="builtin"), "validation").contents()
    monkeypatch.setattr(open_module, "standard_library_documents", lambda split: [LibraryText("a", "another")])
    assert open_documents(DataSettings(dataset="builtin"), "validation").contents() != before


@pytest.mark.parametrize("streaming", [True, False])
def test_the_digest_of_a_hub_dataset(streaming: bool, fake_hub: list[dict[str, Any]], tmp_path: Path) -> None:
    config = DataSettings(dataset="owner/stories", streaming=streaming, validation_split="train")
    (before,) = open_documents(config, "train").contents().values()
    assert before == next(iter(open_documents(config, "train").contents().values()))
    datasets.Dataset.from_list([{"n": 0, "text": "new"}, *ROWS[1:]]).to_parquet(tmp_path / "a.parquet", batch_size=7)
    (after,) = open_documents(config, "train").contents().values()
    assert after != before


@pytest.mark.parametrize("kind", [jsonl, ndjson, csv_table, separated_text, json_list, *COMPRESSED[:3]])
def test_a_file_that_is_cut_short_while_it_is_read(kind: Callable[[Path], str], tmp_path: Path) -> None:
    path = Path(kind(tmp_path))
    source = open_documents(DataSettings(dataset=str(path), validation_split=str(path)), "train")
    start, size = source.cursor(), path.stat().st_size
    source.read()
    os.truncate(path, size - 20)
    source.seek(start)
    with refused(CorpusError, rf"dataset: {path.name} has been cut short since it was opened, from {size} bytes to "):
        list(read_all(source))


def test_a_saved_dataset_that_is_cut_short_while_it_is_read(tmp_path: Path) -> None:
    # In a process of its own: a page that is missing would end it.
    rows = [{"text": "x" * 5000}] * 1000
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    script = f"""
import os
from lightsae.activations.corpus.open import open_documents
from lightsae.activations.settings import DataSettings
source = open_documents(DataSettings(dataset={str(tmp_path / "saved")!r}), "train")._source
source.read()
os.truncate({str(arrow)!r}, 10_000)
while source.read() is not None:
    pass
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 1, ended
    assert "CorpusError" in ended.stderr
    assert "data-00000-of-00001.arrow has been cut short since it was opened" in ended.stderr
