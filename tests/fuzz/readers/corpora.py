"""What is trained on: documents in text, JSON and Parquet files and saved tables, and files of activations."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from fuzz.readers.base import Reader
from lightsae.activations.corpus.open import open_documents
from lightsae.activations.files import ActivationFiles
from lightsae.activations.settings import DataSettings

TEXTS = ["The cat sat.", "é😀 " * 20, "", "a\nb\r\nc", "<|endoftext|> x", "last one"]
IDS = [[1, 2, 3], [4], [5, 6, 7, 8]]


def _read(folder: Path, name: str) -> None:
    settings = DataSettings(model="builtin", dataset=str(folder / name), site="resid_post.2")
    source = open_documents(settings, "train")
    count = 0
    while (document := source.read()) is not None:
        count += 1
        assert count < 1_000_000
        if isinstance(document, str):
            document.encode()
            assert document.strip()
        elif isinstance(document, np.ndarray):
            assert document.dtype in (np.int32, np.int64)
            assert document.ndim == 1
        else:
            for message in document:
                message["content"].encode()
    source.close()


def _text(folder: Path) -> None:
    (folder / "a.txt").write_text("<|endoftext|>".join(TEXTS))


def _lines(folder: Path) -> None:
    lines = [json.dumps({"text": text, "n": i}) for i, text in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")


def _compressed(folder: Path) -> None:
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def _csv(folder: Path) -> None:
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("n", "text"), *enumerate(TEXTS)])


def _messages(folder: Path) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
    records = [{"messages": [message, {"role": "assistant", "content": "é"}]}] * 3
    (folder / "a.ndjson").write_text("\n".join(map(json.dumps, records)))


def _masked(folder: Path) -> None:
    records = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in IDS]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)))


def _list(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps([{"input_ids": ids} for ids in IDS]))


def _parquet(folder: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS * 30, "n": list(range(6 * 30))}), folder / "a.parquet", row_group_size=50)


def _ids(folder: Path) -> None:
    pq.write_table(pa.table({"input_ids": pa.array(IDS * 20, pa.list_(pa.int64()))}), folder / "a.parquet")


def _saved(folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": TEXTS * 3}).save_to_disk(str(folder / "saved"))


def _npy(folder: Path) -> None:
    np.save(folder / "a.npy", np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32))


def _safetensors(folder: Path) -> None:
    save_file({"activations": torch.randn(40, 6)}, folder / "a.safetensors")


def _activations(name: str) -> Any:
    def read(folder: Path) -> None:
        files = ActivationFiles(str(folder / name))
        rows = files.read(0, min(len(files), 64))
        assert rows.ndim == 2
        assert rows.shape[1] == files.width > 0
        assert rows.is_floating_point() or not rows.is_complex()

    return read


CORPORA = {
    "text": Reader(_text, lambda folder: _read(folder, "a.txt")),
    "json_lines": Reader(_lines, lambda folder: _read(folder, "a.jsonl")),
    "json_lines_gz": Reader(_compressed, lambda folder: _read(folder, "a.jsonl.gz")),
    "masked_ids": Reader(_masked, lambda folder: _read(folder, "a.jsonl")),
    "messages": Reader(_messages, lambda folder: _read(folder, "a.ndjson")),
    "csv": Reader(_csv, lambda folder: _read(folder, "a.csv")),
    "json_list": Reader(_list, lambda folder: _read(folder, "a.json")),
    "parquet": Reader(_parquet, lambda folder: _read(folder, "a.parquet")),
    "parquet_ids": Reader(_ids, lambda folder: _read(folder, "a.parquet")),
    "saved_table": Reader(_saved, lambda folder: _read(folder, "saved")),
    "npy": Reader(_npy, _activations("a.npy")),
    "safetensors": Reader(_safetensors, _activations("a.safetensors")),
}
