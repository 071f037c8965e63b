"""What a run gets from a cache: the same activations as from the model, mixed over all of it, without the model."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.cache.fills import STRETCH
from lightsae.activations.cache.manifest import Cache, Manifest
from lightsae.activations.cache.shards import COLUMNS
from lightsae.activations.cache.source import CacheSource
from lightsae.activations.datamodule import ActivationDataModule
from lightsae.activations.settings import DataSettings
from lightsae.activations.stream import ActivationStream, Process, StreamPlan
from lightsae.activations.text_source import TextSource
from lightsae.activations.timings import Timings
from lightsae.lm import LanguageModel
from lightsae.sae import SiteRef

Write = Callable[..., Manifest]
CONTEXT, TOKENS = 8, 1600


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody load a language model."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a language model was loaded")

    monkeypatch.setattr(LanguageModel, "from_pretrained", refuse)


def opened(folder: Path, **settings: Any) -> CacheSource:
    cache = Cache.open(str(folder))
    asked = DataSettings(**({"cache": str(folder), "batch_tokens": 32, "buffer_tokens": 320} | settings))
    return CacheSource(replace(asked, **cache.text_settings(asked)), cache, Timings())


def refs(source: CacheSource) -> tuple[SiteRef, ...]:
    return tuple(source.cache.sites)


def stream(
    source: CacheSource, *, rank: int = 0, world: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> ActivationStream:
    batch = source.settings.batch_tokens
    plan = StreamPlan(batch, source.fill_tokens(world) // batch, 10_000, seed, rank, world)
    process = Process(refs(source), torch.device("cpu"), dtype, rank, world)
    return ActivationStream(source.fills(plan, process), plan, Timings())


def take(of: ActivationStream, count: int) -> list[ActivationBatch]:
    batches = iter(of)
    return [next(batches) for _ in range(count)]


def places(batches: list[ActivationBatch]) -> list[tuple[int, int]]:
    return [pair for b in batches for pair in zip(b.rows.tolist(), b.positions.tolist(), strict=True)]


def same(a: ActivationBatch, b: ActivationBatch) -> bool:
    names = ("tokens", "positions", "documents", "rows", "special")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names) and all(
        torch.equal(a.activations[site], b.activations[site]) and torch.equal(a.sinks[site], b.sinks[site])
        for site in a.sinks
    )


def stored(folder: Path, split: str) -> dict[str, torch.Tensor]:
    """The tensors of a split, as any library reads them."""
    parts = [load_file(path) for path in sorted(folder.glob(f"{split}-*.safetensors"))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


# -- what is stored --------------------------------------------------------------------------------------------------


def test_each_token_is_stored_with_the_activations_that_the_model_gives(
    cached: Path, cached_text: dict[str, Any]
) -> None:
    source = TextSource(DataSettings(**cached_text), Timings())
    sites = tuple(source.site(name) for name in cached_text["site"])
    model = source.models(Process(sites, torch.device("cpu"), torch.float32))[cached_text["model"]]
    for split, tokens in (("validation", 96), ("train", TOKENS)):
        tensors, rows = stored(cached, split), source.rows(split).take(tokens // CONTEXT)
        columns = dict(zip(COLUMNS, tensors["tokens"].unbind(1), strict=True))
        assert columns["token"].tolist() == rows.tokens.reshape(-1).tolist()
        assert columns["document"].tolist() == rows.documents.reshape(-1).tolist()
        assert columns["row"].tolist() == np.repeat(np.arange(len(rows)), CONTEXT).tolist()
        assert columns["position"].tolist() == list(range(CONTEXT)) * len(rows)
        assert columns["special"].bool().tolist() == [t in model.special_token_ids for t in columns["token"].tolist()]
        captured = model.capture(torch.from_numpy(rows.tokens.astype(np.int64)), cached_text["site"])
        for name in cached_text["site"]:
            torch.testing.assert_close(tensors[name], captured[name].flatten(0, 1).clone(), rtol=1e-4, atol=1e-5)


# -- what is served --------------------------------------------------------------------------------------------------


def test_batches_hold_what_is_stored_with_sinks_and_all(cached: Path, no_model: None) -> None:
    source, tensors = opened(cached), stored(cached, "train")
    for batch in take(stream(source), 60):
        at = batch.rows * CONTEXT + batch.positions
        for name, values in zip(COLUMNS, (batch.tokens, batch.positions, batch.documents, batch.rows), strict=False):
            assert torch.equal(values, tensors["tokens"][at, COLUMNS.index(name)].long())
        for ref in refs(source):
            assert torch.equal(batch.activations[ref], tensors[ref.site][at])
            assert (batch.sinks[ref] | ~(batch.special | (batch.positions == 0))).all()


def test_an_epoch_serves_each_token_once_and_the_next_in_another_order(cached: Path, no_model: None) -> None:
    of = stream(opened(cached))
    epochs = [places(take(of, TOKENS // 32)) for _ in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == Counter((row, position) for row in range(TOKENS // CONTEXT) for position in range(8))
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_fill_is_a_sample_of_the_whole_cache(cached: Path, no_model: None) -> None:
    # 20 of 100 stretches; were they neighbours, they would lie in one shard or two.
    fills = [take(stream(opened(cached), seed=seed), 10) for seed in range(5)]
    for fill in fills:
        shards = Counter(row // 40 for row, _ in places(fill))
        assert len(shards) == 5
        assert max(shards.values()) < 0.6 * 320


def test_neighbours_meet_as_often_as_is_said(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "c", tokens=3200, shard_tokens=1600)
    of = stream(opened(tmp_path / "c", batch_tokens=64, buffer_tokens=640))
    met: list[int] = []
    for batch in take(of, 100):
        stretches = Counter(((batch.rows * CONTEXT + batch.positions) // STRETCH).tolist())
        met += [count - 1 for count in stretches.values() for _ in range(count)]
    assert np.mean(met) == pytest.approx(15 * 63 / 639, rel=0.05)


def test_what_is_left_out_of_training_is_not_served(cached: Path, no_model: None) -> None:
    source = opened(cached, skip_special_tokens=True, skip_positions=3)
    assert source.fill_tokens(1) == 200
    assert source.epoch_tokens() == 1000
    for batch in take(stream(source), 30):
        assert not batch.special.any()
        assert (batch.positions >= 3).all()
        assert len(batch) == 32


def test_ranks_read_other_rows_and_together_everything(cached: Path, no_model: None) -> None:
    ranks = [stream(opened(cached, buffer_tokens=160), rank=rank, world=2) for rank in (0, 1)]
    served = [places(take(of, TOKENS // 64)) for of in ranks]
    assert not set(served[0]) & set(served[1])
    assert len(set(served[0]) | set(served[1])) == TOKENS


@pytest.mark.parametrize("stop", [0, 1, 9, 10, 11, 49, 50, 73])
def test_a_resumed_stream_goes_on_with_the_same_batches(cached: Path, no_model: None, stop: int) -> None:
    whole = take(stream(opened(cached)), 90)
    first, second = stream(opened(cached)), stream(opened(cached))
    take(first, stop)
    second.load_state_dict(first.state_dict())
    assert all(same(a, b) for a, b in zip(take(second, 90 - stop), whole[stop:], strict=True))


def test_seeds_repeat_and_differ(cached: Path, no_model: None) -> None:
    first, again, other = (places(take(stream(opened(cached), seed=seed), 12)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_one_of_the_sites_alone(cached: Path, no_model: None) -> None:
    source = opened(cached)
    one = refs(source)[1]
    plan = StreamPlan(32, 10, 100, 0)
    fills = source.fills(plan, Process((one,), torch.device("cpu"), torch.float32))
    batch = next(iter(ActivationStream(fills, plan, Timings())))
    both = next(iter(stream(source)))
    assert batch.activations.keys() == {one}
    assert torch.equal(batch.activations[one], both.activations[one])


@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_the_buffer_may_have_another_dtype_than_the_shards(write: Write, tmp_path: Path, asked: torch.dtype) -> None:
    write(tmp_path / "c", store_dtype="bfloat16")
    source, tensors = opened(tmp_path / "c"), stored(tmp_path / "c", "train")
    assert source.stored_dtype == tensors["resid_post.0"].dtype == torch.bfloat16
    for batch in take(stream(source, dtype=asked), 12):
        at = batch.rows * CONTEXT + batch.positions
        for ref in refs(source):
            assert batch.activations[ref].dtype == asked
            assert torch.equal(batch.activations[ref], tensors[ref.site][at].to(asked))


def test_a_cache_smaller_than_the_buffer(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "c", tokens=200)
    source = opened(tmp_path / "c", batch_tokens=64, buffer_tokens=100_000)
    assert source.fill_tokens(1) == 192
    assert len(set(places(take(stream(source), 3)))) == 192


# -- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
def test_validation_is_that_of_a_run_on_text(cached: Path, cached_text: dict[str, Any], world: int) -> None:
    text = TextSource(DataSettings(**cached_text, batch_tokens=32), Timings())
    source = opened(cached, val_tokens=96)
    for rank in range(world):
        process = Process(refs(source), torch.device("cpu"), torch.float32, rank, world)
        batches = zip(source.held_out(process), text.held_out(process), strict=True)
        for stored_batch, made in batches:
            assert stored_batch.rows_shape == made.rows_shape
            assert stored_batch.index == made.index
            for name in ("tokens", "positions", "documents", "rows", "special"):
                assert torch.equal(getattr(stored_batch, name), getattr(made, name))
            for ref in refs(source):
                torch.testing.assert_close(stored_batch.activations[ref], made.activations[ref], rtol=1e-4, atol=1e-5)
                assert torch.equal(stored_batch.sinks[ref], made.sinks[ref])


def test_fewer_held_out_tokens_than_asked_for_are_said(cached: Path, no_model: None) -> None:
    source = opened(cached, val_tokens=1000)
    with pytest.warns(UserWarning, match="The cache has 96 held-out tokens; val_tokens asks for 1000"):
        held_out = source.held_out(Process(refs(source), torch.device("cpu"), torch.float32))
    assert sum(len(batch) for batch in held_out) == 96


# -- the data module -------------------------------------------------------------------------------------------------


def test_settings_of_the_text_are_those_of_the_cache(cached: Path, cached_text: dict[str, Any], no_model: None) -> None:
    data = ActivationDataModule(cache=str(cached), site="mlp_out.1")
    for name in ("model", "dataset", "context_size", "validation_fraction"):
        assert getattr(data, name) == cached_text[name]
    assert list(data.widths_at().read) == [SiteRef(cached_text["model"], "mlp_out.1")]
    data.preflight()
    told = data.describe()
    assert told["model"] == cached_text["model"]
    assert told["dataset"] == cached_text["dataset"]
    assert told["context_size"] == CONTEXT
    assert told["cache"] == "cache"


def test_the_dtype_is_that_of_the_shards(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "c", store_dtype="bfloat16")
    cpu = torch.device("cpu")
    assert ActivationDataModule(cache=str(tmp_path / "c")).dtype_on(cpu) == torch.bfloat16
    assert ActivationDataModule(cache=str(tmp_path / "c"), dtype="float32").dtype_on(cpu) == torch.float32
