"""What a checkpoint says of its data: every source is covered, what has changed is noticed, and named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer

from helpers.errors import refused
from lightsae.activations import contents
from lightsae.activations.contents import check_unchanged, digests_of_files
from lightsae.activations.datamodule import ActivationDataModule
from lightsae.activations.synthetic.config import SyntheticConfig
from lightsae.errors import CorpusError, LightsaeError


def files(folder: Path, sizes: list[int], seed: int = 0) -> list[Path]:
    draw = np.random.default_rng(seed)
    paths = [folder / f"{i}.bin" for i in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(draw.bytes(size))
    return paths


@pytest.mark.parametrize("size", [1, 100, 60_000])
def test_any_byte_of_small_files_counts(size: int, tmp_path: Path) -> None:
    paths = files(tmp_path, [size, 10])
    before = digests_of_files(paths, tmp_path)
    assert list(before) == ["0.bin", "1.bin"]
    for place in {0, size // 2, size - 1}:
        data = paths[0].read_bytes()
        paths[0].write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        after = digests_of_files(paths, tmp_path)
        assert after["0.bin"] != before["0.bin"]
        assert after["1.bin"] == before["1.bin"]
        paths[0].write_bytes(data)
    assert digests_of_files(paths, tmp_path) == before


def test_of_large_files_blocks_from_all_over_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_READ_OF_ALL", 1 << 16)
    (path,) = files(tmp_path, [1 << 20])
    before, data = digests_of_files([path], tmp_path), path.read_bytes()
    for changed in (bytes(16) + data[16:], data[:-16] + bytes(16), data[: 1 << 19] + bytes(1 << 19), data + b"1"):
        path.write_bytes(changed)
        assert digests_of_files([path], tmp_path) != before
    read: list[int] = []
    monkeypatch.setattr(contents, "digest", lambda parts: read.append(sum(map(len, parts))) or "")
    digests_of_files([path], tmp_path)
    assert sum(read) < (1 << 16) + 100


def test_many_files_have_one_digest(tmp_path: Path) -> None:
    paths = files(tmp_path, [20] * 70)
    before = digests_of_files(paths, tmp_path)
    assert list(before) == ["70 files"]
    paths[33].write_bytes(b"another")
    assert digests_of_files(paths, tmp_path) != before


def test_what_has_changed_is_named() -> None:
    before = {"dataset": {"a": "1", "b": "2", "c": "3"}, "model": {}}
    check_unchanged(before, {"dataset": {"a": "1", "b": "2", "c": "3"}, "model": {}})
    with refused(CorpusError, r"^dataset: what b, c, d held has changed since the checkpoint was written\. Resume"):
        check_unchanged(before, {"dataset": {"a": "1", "b": "0", "d": "3"}})
    with refused(CorpusError, r"^dataset: what a, b, c and 1 more held"):
        check_unchanged(before, {"dataset": {"e": "1"}})


@pytest.mark.parametrize("stored", [None, {}, {"model": {}}])
def test_a_checkpoint_that_does_not_say_is_taken_with_a_warning(stored: Any) -> None:
    with pytest.warns(UserWarning, match=r"does not tell what dataset held: whether it has changed is not checked\."):
        check_unchanged(stored, {"dataset": {"a": "1"}})


# -- every source of data ---------------------------------------------------------------------------------------------


def texts(seed: int) -> list[dict[str, str]]:
    draw = np.random.default_rng(seed)
    return [{"text": f"{i:03} " + "".join(draw.choice(list("abcdef "), 80))} for i in range(200)]


def npy(folder: Path, seed: int) -> dict[str, Any]:
    np.save(folder / "acts.npy", np.random.default_rng(seed).normal(size=(900, 8)).astype("f4"))
    return {"activations": str(folder / "acts.npy")}


def shards(folder: Path, seed: int) -> dict[str, Any]:
    (folder / "shards").mkdir(exist_ok=True)
    for i in range(3):
        values = np.random.default_rng(seed if i == 1 else 9).normal(size=(400, 8)).astype("f4")
        np.save(folder / "shards" / f"acts_{i}.npy", values)
    return {"activations": str(folder / "shards")}


def jsonl(folder: Path, seed: int) -> dict[str, Any]:
    (folder / "acts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts(seed)))
    return {"dataset": str(folder / "acts.jsonl")}


def parquet(folder: Path, seed: int) -> dict[str, Any]:
    pq.write_table(pa.Table.from_pylist(texts(seed)), folder / "acts.parquet", compression="none")
    return {"dataset": str(folder / "acts.parquet")}


def folder_of_text(folder: Path, seed: int) -> dict[str, Any]:
    (folder / "texts").mkdir(exist_ok=True)
    for i, row in enumerate(texts(seed)[:50]):
        (folder / "texts" / f"acts_{i}.txt").write_text(row["text"])
    return {"dataset": str(folder / "texts")}


def weights(folder: Path, seed: int) -> dict[str, Any]:
    file = folder / "model" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] = seed
    file.write_bytes(data)
    return jsonl(folder, 0)


def synthetic(folder: Path, seed: int) -> dict[str, Any]:
    return {"dataset": "synthetic", "synthetic": {"features": 32, "width": 8, "magnitude_mean": 1.0 + seed}}


CHANGES = {
    npy: "activations: what acts.npy held",
    shards: "activations: what acts_1.npy held",
    jsonl: "dataset: what acts.jsonl held",
    parquet: "dataset: what acts.parquet held",
    folder_of_text: "dataset: what acts_0.txt, acts_1.txt, acts_10.txt and 47 more held",
    weights: "model: what model.safetensors of .* held",
    synthetic: "synthetic: what the world held",
}


@pytest.fixture
def opened(make_model: Callable[..., Path], tmp_path: Path) -> Callable[[dict[str, Any]], Any]:
    """Return a function from settings of the data to an open stream."""
    model = tmp_path / "model"
    model.mkdir()
    for file in make_model().iterdir():
        (model / file.name).write_bytes(file.read_bytes())

    def stream(settings: dict[str, Any]) -> Any:
        settings = {"batch_tokens": 64, "buffer_tokens": 256, "val_tokens": 64, "context_size": 16, **settings}
        if "dataset" in settings and settings["dataset"] != "synthetic":
            settings |= {"model": str(model), "site": "resid_post.0", "num_workers": 0}
        elif "synthetic" in settings:
            settings["synthetic"] = SyntheticConfig(**settings["synthetic"])
        data = ActivationDataModule(**settings)
        trainer = Trainer(max_steps=100, accelerator="cpu", logger=False, enable_checkpointing=False)
        data.trainer = trainer
        data._open("fit", torch.float32)
        return data.train_dataloader()

    return stream


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec")
@pytest.mark.parametrize("source", CHANGES, ids=lambda source: source.__name__)
def test_data_that_has_changed_stops_a_resumption(source: Any, opened: Any, tmp_path: Path) -> None:
    first = opened(source(tmp_path, 0))
    batches = iter(first)
    next(batches)
    state = first.state_dict()
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    expected = next(batches)
    first.close()

    same = opened(source(tmp_path, 0))
    same.load_state_dict(state)
    assert torch.equal(next(iter(same)).rows, expected.rows)
    same.close()

    other = opened(source(tmp_path, 1))
    with refused(LightsaeError, f"^{CHANGES[source]} has changed since the checkpoint was written"):
        other.load_state_dict(state)
    other.close()

    del state["contents"]
    other = opened(source(tmp_path, 1))
    with pytest.warns(UserWarning, match="whether it has changed is not checked"):
        other.load_state_dict(state)
    other.close()
