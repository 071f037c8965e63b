"""Activation files: what is read, in which order, how it is held out, and fills over epochs."""

import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.errors import refused
from lightsae.activations.batch import ActivationBatch
from lightsae.activations.files import CHUNK_ROWS, ActivationFiles, Chunks, FileFills, held_out_chunks
from lightsae.activations.stream import ActivationStream, Process, StreamPlan
from lightsae.activations.timings import Timings
from lightsae.errors import ActivationError, CorpusError


def process(rank: int = 0, world: int = 1) -> Process:
    return Process((), torch.device("cpu"), torch.float32, rank, world)


def numbered(rows: int, start: int = 0, width: int = 3) -> np.ndarray:
    """Each row tells its number, so that a batch tells which rows it holds."""
    return np.repeat(np.arange(start, start + rows, dtype=np.float32)[:, None], width, 1)


def saved(path: Path, rows: int, start: int = 0, width: int = 3) -> str:
    np.save(path, numbered(rows, start, width))
    return str(path)


def numbers(batch: ActivationBatch) -> list[int]:
    (values,) = batch.activations.values()
    assert (values == values[:, :1]).all()
    assert torch.equal(values[:, 0].long(), batch.rows), "the row numbers are those of the file"
    return batch.rows.tolist()


# -- reading ---------------------------------------------------------------------------------------------------------


def test_npy_and_safetensors_hold_the_same(tmp_path: Path) -> None:
    saved(tmp_path / "a.npy", 50)
    save_file({"activations": torch.from_numpy(numbered(50)), "other": torch.zeros(2)}, tmp_path / "b.safetensors")
    save_file({"whatever": torch.from_numpy(numbered(50))}, tmp_path / "c.safetensors")
    for name in ("a.npy", "b.safetensors", "c.safetensors"):
        files = ActivationFiles(str(tmp_path / name))
        assert (len(files), files.width, files.site.site) == (50, 3, Path(name).stem)
        assert torch.equal(files.read(7, 31), torch.from_numpy(numbered(24, 7)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"activations": torch.from_numpy(numbered(50)).to(dtype)}, tmp_path / "a.safetensors")
    found = ActivationFiles(str(tmp_path / "a.safetensors")).read(0, 50)
    assert torch.equal(found.float(), torch.from_numpy(numbered(50)))
    if dtype != torch.bfloat16:
        np.save(tmp_path / "b.npy", numbered(50).astype(str(dtype).removeprefix("torch.")))
        assert torch.equal(ActivationFiles(str(tmp_path / "b.npy")).read(0, 50), found)


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    saved(folder / "part-10.npy", 4, start=17)
    saved(folder / "part-2.npy", 7, start=10)
    save_file({"x": torch.from_numpy(numbered(10))}, folder / "part-1.safetensors")
    (folder / "notes.txt").write_text("not activations")
    files = ActivationFiles(str(folder))
    assert (len(files), files.site.site) == (21, "shards")
    assert torch.equal(files.read(0, 21), torch.from_numpy(numbered(21)))
    assert torch.equal(files.read(8, 19), torch.from_numpy(numbered(11, 8)))
    assert torch.equal(files.read(10, 17), torch.from_numpy(numbered(7, 10)))


def test_names_that_mix_numbers_and_letters_have_an_order(tmp_path: Path) -> None:
    for start, name in enumerate(("1.npy", "a.npy", "a1.npy", "a1b.npy")):
        saved(tmp_path / name, 1, start)
    assert len(ActivationFiles(str(tmp_path))) == 4


def _wrong(tmp_path: Path, case: str) -> str:
    if case == "missing":
        saved(tmp_path / "activations.npy", 3)
        return str(tmp_path / "activation.npy")
    if case == "suffix":
        (tmp_path / "a.csv").write_text("1,2")
        return str(tmp_path / "a.csv")
    if case == "empty folder":
        return str(tmp_path)
    if case == "widths":
        saved(tmp_path / "a.npy", 3, width=3)
        saved(tmp_path / "b.npy", 3, width=4)
        return str(tmp_path)
    path = tmp_path / ("a.safetensors" if "tensors" in case else "a.npy")
    if case == "vector":
        np.save(path, np.zeros(5, dtype=np.float32))
    elif case == "no rows":
        np.save(path, np.zeros((0, 5), dtype=np.float32))
    elif case == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif case == "cut short":
        saved(path, 1000)
        path.write_bytes(path.read_bytes()[:500])
    elif case == "cut short safetensors":
        save_file({"x": torch.zeros(100, 3)}, path)
        path.write_bytes(path.read_bytes()[:200])
    elif case == "several tensors":
        save_file({"x": torch.zeros(2, 3), "y": torch.zeros(2, 3)}, path)
    return str(path)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("missing", r"does not exist\. Did you mean 'activations.npy'"),
        ("suffix", r"write a \.npy or \.safetensors"),
        ("empty folder", r"folder without"),
        ("widths", r"different widths, \[3, 4\]"),
        ("vector", r"shape \(5,\)"),
        ("no rows", r"shape \(0, 5\)"),
        ("pickle", "not a readable .npy"),
        ("cut short", "not a readable .npy"),
        ("cut short safetensors", "not a readable .safetensors"),
        ("several tensors", r"\['x', 'y'\].*'activations'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, case: str, said: str) -> None:
    with pytest.raises(CorpusError, match=said) as error:
        ActivationFiles(_wrong(tmp_path, case))
    assert "activations" in str(error.value)
    assert "\n" not in str(error.value)


# -- how numbers lie in a file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f2", ">f8", "<f8", ">i4", "<i2", ">u2", "<u4", "|u1", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_every_byte_order_and_layout(tmp_path: Path, dtype: str, order: Any) -> None:
    values = np.random.default_rng(0).integers(0, 2 if dtype == "|b1" else 200, (300, 7)).astype(dtype)
    np.save(tmp_path / "a.npy", np.array(values, order=order))
    files = ActivationFiles(str(tmp_path / "a.npy"))
    for start, stop in ((0, 300), (17, 18), (123, 299)):
        buffer = torch.empty(stop - start, 7)
        buffer.copy_(files.read(start, stop))
        assert torch.equal(buffer, torch.from_numpy(values[start:stop].astype(np.float32)))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.uint8, torch.bool])
def test_further_numbers_of_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randint(0, 2, (50, 3)).to(dtype)
    save_file({"x": torch.zeros(3), "activations": values}, tmp_path / "a.safetensors")
    found = ActivationFiles(str(tmp_path / "a.safetensors")).read(11, 37)
    assert found.dtype == dtype
    assert torch.equal(found.float(), values[11:37].float())


def npy(path: Path, header: str, data: bytes = bytes(4096)) -> None:
    """Write a .npy file with any header."""
    text = header.encode("latin1") + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)


def header(descr: str = "'<f4'", shape: str = "(8, 4)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


@pytest.mark.parametrize(
    "text",
    [
        header(shape="(4611686018427387904, 4)"),
        header(shape="(9223372036854775807, 9223372036854775807)"),
        header(shape=f"({10**40}, 4)"),
        header(shape="(4294967296, 4294967296)"),
        header(shape="(-1, 4)"),
        header(shape="(-8, -4)"),
        header(shape="(8, 4.0)"),
        header(shape="(True, 4)"),
        header(shape="((8, 4), 4)"),
        header(shape="8"),
        header(shape="()"),
        header(shape="(8, 4, 1)"),
        header(shape="(2000, 4)"),
        header(descr="'|O'"),
        header(descr="'<f3'"),
        header(descr="'<f16'"),
        header(descr="'<c8'"),
        header(descr="'<M8[s]'"),
        header(descr="'<U3'"),
        header(descr="'|V4'"),
        header(descr="[('a', '<f4'), ('b', '<f4')]"),
        header(descr="('<f4', (2,))"),
        header(descr="'f4,O'"),
        header(descr="7"),
        header(order="3"),
        "{'descr': '<f4'}",
        "[" * 3000,
        "{" * 150 + "}" * 150,
        "-" * 9000 + "1",
        "__import__('os').getcwd()",
        "\xff\xfe",
        "",
        " " * 30_000,
    ],
    ids=lambda text: text[:50],
)
def test_headers_that_cannot_be_right(tmp_path: Path, text: str) -> None:
    npy(tmp_path / "a.npy", text)
    with refused(CorpusError, r"^activations(: | is ')\S*a\.npy"):
        ActivationFiles(str(tmp_path / "a.npy"))


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_files_with_any_byte_changed_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / f"whole.{kind}"
    if kind == "npy":
        np.save(whole, numbered(12))
    else:
        save_file({"x": torch.from_numpy(numbered(12))}, whole)
    data, draw = whole.read_bytes(), np.random.default_rng(0)
    path = tmp_path / f"a.{kind}"
    for place in range(len(data) - 12 * 3 * 4):
        for value in {0, 255, *draw.integers(0, 256, 4).tolist()}:
            path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
            try:
                files = ActivationFiles(str(path))
            except CorpusError as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                assert files.read(0, len(files)).shape == (len(files), files.width)
                assert len(files) * files.width <= 12 * 3 * 4


# -- files that change while they are read ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
@pytest.mark.parametrize("left", [0, 10, 200, 4000])
def test_a_file_that_is_cut_short_while_it_is_read(tmp_path: Path, kind: str, left: int) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        saved(path, 1000)
    else:
        save_file({"x": torch.from_numpy(numbered(1000))}, path)
    files = ActivationFiles(str(path))
    files.read(0, 1000)
    os.truncate(path, left)
    with refused(CorpusError, rf"activations: .*a\.{kind} has been cut short since it was opened: .* byte {left}\."):
        files.read(900, 1000)


def test_a_file_that_is_removed_while_it_is_read(tmp_path: Path) -> None:
    files = ActivationFiles(saved(tmp_path / "a.npy", 1000))
    (tmp_path / "a.npy").unlink()
    with refused(CorpusError, r"activations: .*a\.npy can no longer be read: No such file"):
        files.read(0, 10)


# -- chunks ----------------------------------------------------------------------------------------------------------


def rows_of(chunks: Chunks, which: np.ndarray) -> list[int]:
    return [row for chunk in which for row in range(*chunks.bounds(int(chunk)))]


@pytest.mark.parametrize("rows", [2, 5, 10, 19, 20, 21, 100, 255, 257, 1000, 12_345, 100_000])
@pytest.mark.parametrize("fill_rows", [64, 1000, 262_144])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_every_row_is_on_one_side(rows: int, fill_rows: int, share: float) -> None:
    chunks = Chunks(rows, share, fill_rows)
    train, held_out = rows_of(chunks, chunks.train), rows_of(chunks, chunks.validation)
    assert sorted(train + held_out) == list(range(rows))
    assert train
    assert held_out
    assert chunks.size <= CHUNK_ROWS
    assert abs(len(held_out) - share * rows) <= 2 * chunks.size


# -- fills -----------------------------------------------------------------------------------------------------------


def stream(
    path: str, *, batch: int, fill_rows: int, seed: int = 0, rank: int = 0, world: int = 1, share: float = 0.05
) -> ActivationStream:
    files = ActivationFiles(path)
    chunks = Chunks(len(files), share, fill_rows)
    in_fill = chunks.in_fill(fill_rows, batch, world)
    plan = StreamPlan(batch, max(1, in_fill * chunks.size // batch), 10_000, seed, rank, world)
    source = FileFills(files, chunks, plan, torch.empty(in_fill * chunks.size, files.width), Timings())
    return ActivationStream(source, plan, Timings())


def take(source: ActivationStream, count: int) -> list[list[int]]:
    batches = iter(source)
    return [numbers(next(batches)) for _ in range(count)]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


@pytest.fixture
def big(tmp_path: Path) -> str:
    return saved(tmp_path / "big.npy", 4096)


def test_a_fill_serves_its_rows_once_in_another_order(big: str) -> None:
    served = flat(take(stream(big, batch=64, fill_rows=1024), 16))
    assert len(set(served)) == len(served) == 1024
    assert served != sorted(served)
    runs = sum(b == a + 1 for a, b in pairwise(served))
    assert runs < 10, "neighbours are torn apart"


def test_an_epoch_serves_every_training_row_once(tmp_path: Path) -> None:
    # 19 of 20 chunks of 128 rows train; a fill holds 1 of 8 chunks' width: fills divide the epoch evenly.
    path = saved(tmp_path / "a.npy", 20 * 128)
    files = stream(path, batch=128, fill_rows=19 * 128)
    per_epoch = files.plan.batches_per_fill
    held_out = set(rows_of(files.source.chunks, files.source.chunks.validation))
    first, second = take(files, per_epoch), take(files, per_epoch)
    assert sorted(flat(first)) == sorted(set(range(20 * 128)) - held_out)
    assert sorted(flat(second)) == sorted(flat(first))
    assert first != second


def test_every_epoch_deals_its_rows_to_the_fills_anew(big: str) -> None:
    source = stream(big, batch=64, fill_rows=512, share=0.25)
    assert len(source.source.chunks.train) == 48  # 6 fills of 8 chunks
    fills = [frozenset(flat(take(source, 8))) for _ in range(18)]
    epochs = [fills[start : start + 6] for start in (0, 6, 12)]
    assert len({frozenset().union(*epoch) for epoch in epochs}) == 1
    assert len(set(fills)) == 18


def test_many_fills_serve_all_rows_about_equally_often(big: str) -> None:
    source = stream(big, batch=64, fill_rows=512)
    counts = Counter(flat(take(source, 4 * 64)))
    held_out = set(rows_of(source.source.chunks, source.source.chunks.validation))
    assert set(counts) == set(range(4096)) - held_out
    assert set(counts.values()) <= {3, 4, 5}


def test_held_out_rows_are_never_trained_on_and_served_in_order(big: str) -> None:
    source = stream(big, batch=64, fill_rows=512)
    files, chunks = source.source.files, source.source.chunks
    held_out = held_out_chunks(files, chunks, 10_000, 100, process())
    served = flat([numbers(batch) for batch in held_out])
    assert served == rows_of(chunks, chunks.validation)
    assert not set(served) & set(flat(take(source, 200)))
    assert [batch.index for batch in held_out] == list(range(len(held_out)))
    assert served == flat([numbers(batch) for batch in held_out]), "a second validation is the same"


def test_ranks_share_no_rows_and_cover_the_epoch(big: str) -> None:
    ranks = [stream(big, batch=64, fill_rows=512, rank=rank, world=2) for rank in (0, 1)]
    fills = [set(flat(take(source, 8))) for source in ranks]
    assert all(len(fill) == 512 for fill in fills)
    assert not fills[0] & fills[1]
    # An epoch of two ranks is one epoch of the file, and a little more: it ends within a fill.
    more = [set(flat(take(source, 4 * 8))) for source in ranks]
    everything = fills[0] | fills[1] | more[0] | more[1]
    held_out = set(rows_of(ranks[0].source.chunks, ranks[0].source.chunks.validation))
    assert everything == set(range(4096)) - held_out


def test_validation_of_two_ranks_is_that_of_one(big: str) -> None:
    files = ActivationFiles(big)
    chunks = Chunks(len(files), 0.1, 512)

    def rows(rank: int, world: int) -> list[int]:
        return flat([numbers(b) for b in held_out_chunks(files, chunks, 10**6, 64, process(rank, world))])

    assert sorted(rows(0, 2) + rows(1, 2)) == rows(0, 1)


def test_seeds_differ_and_repeat(big: str) -> None:
    first = take(stream(big, batch=64, fill_rows=512), 20)
    assert first == take(stream(big, batch=64, fill_rows=512), 20)
    assert first != take(stream(big, batch=64, fill_rows=512, seed=1), 20)


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 9, 61, 100])
def test_a_resumed_stream_goes_on_with_the_same_batches(big: str, stop: int) -> None:
    whole = take(stream(big, batch=64, fill_rows=512), 130)
    first = stream(big, batch=64, fill_rows=512)
    take(first, stop)
    second = stream(big, batch=64, fill_rows=512)
    second.load_state_dict(first.state_dict())
    assert take(second, 130 - stop) == whole[stop:]


# -- small and uneven files ------------------------------------------------------------------------------------------


def test_a_file_smaller_than_the_buffer_is_one_fill_an_epoch(tmp_path: Path) -> None:
    source = stream(saved(tmp_path / "a.npy", 300), batch=32, fill_rows=100_000)
    per_fill = source.plan.batches_per_fill
    train = set(rows_of(source.source.chunks, source.source.chunks.train))
    for _ in range(3):
        served = flat(take(source, per_fill))
        assert len(set(served)) == len(served) > len(train) - 32
        assert set(served) <= train


@pytest.mark.parametrize("rows", [67, 70, 71, 75, 80, 130, 131, 290, 300, 333, 1001])
@pytest.mark.parametrize("fill_rows", [64, 70, 100, 128, 1000])
def test_no_row_twice_in_a_fill_whatever_the_sizes(tmp_path: Path, rows: int, fill_rows: int) -> None:
    source = stream(saved(tmp_path / "a.npy", rows), batch=16, fill_rows=fill_rows)
    fills, chunks = source.source, source.source.chunks
    for number in range(4):
        everything = fills.fill(number).everything
        assert len(everything) == fills.chunks_in_fill * chunks.size
        assert len(everything) <= max(fill_rows, 16 + chunks.size)
        served = Counter(flat(take(source, source.plan.batches_per_fill)))
        # Where an epoch ends within the fill, a row may come at its end and again at the start of the next.
        straddles = number * fills.chunks_in_fill // len(chunks.train) != (
            (number + 1) * fills.chunks_in_fill - 1
        ) // len(chunks.train)
        assert max(served.values()) <= 1 + straddles


def test_a_file_barely_above_a_batch(tmp_path: Path) -> None:
    source = stream(saved(tmp_path / "a.npy", 70), batch=64, fill_rows=4096)
    for batch in take(source, 5):
        assert len(set(batch)) == 64


def test_a_file_smaller_than_a_batch_is_repeated_to_fill_it(tmp_path: Path) -> None:
    source = stream(saved(tmp_path / "a.npy", 30), batch=64, fill_rows=4096)
    (batch,) = take(source, 1)
    assert len(batch) == 64
    assert max(Counter(batch).values()) - min(Counter(batch).values()) <= 1


def test_what_is_known_of_a_row(big: str) -> None:
    batch = next(iter(stream(big, batch=64, fill_rows=512)))
    assert (batch.tokens == -1).all()
    assert not batch.special.any()
    assert batch.rows_shape is None


def test_a_row_of_huge_norm_is_a_sink(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    values[[3, 77]] *= 1000
    np.save(tmp_path / "a.npy", values)
    files = ActivationFiles(str(tmp_path / "a.npy"))
    source = stream(str(tmp_path / "a.npy"), batch=64, fill_rows=500)
    sample = source.sample()
    (sinks,) = sample.sinks.values()
    assert set(sample.rows[sinks].tolist()) == {3, 77} - set(
        rows_of(source.source.chunks, source.source.chunks.validation)
    )
    assert len(files) == 500


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_buffer_has_the_dtype_that_is_asked_for(big: str, dtype: torch.dtype) -> None:
    files = ActivationFiles(big)
    plan = StreamPlan(64, 8, 100, 0)
    chunks = Chunks(len(files), 0.05, 512)
    source = FileFills(files, chunks, plan, torch.empty(8 * chunks.size, files.width, dtype=dtype), Timings())
    (values,) = source.fill(0).everything.activations.values()
    assert values.dtype == dtype


def test_the_buffer_is_allocated_once(big: str) -> None:
    source = stream(big, batch=64, fill_rows=512).source

    def address(number: int) -> int:
        (values,) = source.fill(number).everything.activations.values()
        return values.data_ptr()

    assert len({address(number) for number in range(4)}) == 1


def test_nan_in_held_out_rows_is_said(tmp_path: Path) -> None:
    values = np.ones((400, 3), dtype=np.float32)
    chunks = Chunks(len(values), 0.1, 64)
    start, _ = chunks.bounds(int(chunks.validation[0]))
    values[start, 1] = np.nan
    np.save(tmp_path / "acts.npy", values)
    files = ActivationFiles(str(tmp_path / "acts.npy"))
    with pytest.raises(
        ActivationError,
        match=r"acts holds NaN or infinity on 1 of .* of validation, in batch 0\. The first is in row \d+\.",
    ):
        list(held_out_chunks(files, chunks, 400, 64, process()))
