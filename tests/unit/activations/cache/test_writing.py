"""How a cache is written: whole or not at all, to the same bytes however often it is stopped; and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.errors import refused
from lightsae.activations.cache import plan as plans
from lightsae.activations.cache import writer
from lightsae.activations.cache.manifest import NAME, Cache, Manifest
from lightsae.activations.cache.shards import Shard
from lightsae.activations.datamodule import ActivationDataModule
from lightsae.activations.settings import DataSettings, MixedDataset
from lightsae.activations.stream import Process
from lightsae.errors import ActivationError, ConfigError, CorpusError, FormatError, ModelError, SiteError, arg
from lightsae.lm import LanguageModel, placement
from lightsae.sae import SiteRef

Write = Callable[..., Manifest]
SHARDS = ["train-00000", "train-00001", "train-00002", "train-00003", "train-00004", "validation-00000"]


@pytest.fixture
def copy(cached: Path, tmp_path: Path) -> Path:
    """The cache of the other tests, to be changed."""
    return Path(shutil.copytree(cached, tmp_path / "cache"))


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_at(monkeypatch: pytest.MonkeyPatch, shard: int, *, renamed: bool) -> None:
    """Stop the writer while it writes a shard, or when the shard has its name and the manifest does not know of it."""
    whole, count = writer.write_shard, 0

    def write(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count <= shard:
            return whole(*args)
        if renamed:
            whole(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_shard", write)


# -- whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", [0, 1, 3, 5])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_stopped_writer_goes_on_to_the_same_bytes(
    cached: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int, renamed: bool
) -> None:
    folder = tmp_path / "cache"
    with monkeypatch.context() as patch:
        kill_at(patch, shard, renamed=renamed)
        with pytest.raises(KeyboardInterrupt):
            write(folder)
    assert len(Manifest.read(folder).shards) == shard, "at most the shard in progress is lost"
    with refused(CorpusError, r"data\.cache is .*, which is not complete: it has [\d,]+ training tokens so far\."):
        ActivationDataModule(cache=str(folder))
    kept = [folder / entry.file for entry in Manifest.read(folder).shards]
    before = [path.stat().st_mtime_ns for path in kept]
    write(folder)
    assert held(folder) == held(cached)
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_auto_is_gone_on_with_as_it_was_begun(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, halves = tmp_path / "cache", {"dtype": "auto"}
    with monkeypatch.context() as patch:
        patch.setattr("lightsae.lm.dtypes.bfloat16_speedup", lambda: 2.0)
        write(folder, tokens=640, **halves)
    # A machine that is busy by now, or another one.
    monkeypatch.setattr("lightsae.lm.dtypes.bfloat16_speedup", lambda: 1.0)
    assert write(folder, **halves).identity.model_dtype == "bfloat16"


def test_what_is_complete_is_left_alone(copy: Path, write: Write) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    write(copy)
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_progress_is_told_in_tokens_and_goes_on_where_it_was(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    told: list[tuple[str, int, list[int]]] = []

    class Heard:
        @contextmanager
        def stage(self, name: str, total: int) -> Any:
            told.append((name, total, []))
            yield told[-1][2].append

    with monkeypatch.context() as patch:
        kill_at(patch, 3, renamed=False)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "c", progress=Heard())
    write(tmp_path / "c", progress=Heard())
    (_, total, first), (comparing, there, compared), (name, again, second) = told
    assert (name, total, again) == ("caching", 1696, 1696)
    assert first[0] == 64
    assert (comparing, there, compared[-1]) == ("comparing what is there", 96 + 2 * 320, 96 + 2 * 320)
    assert second[0] == 96 + 2 * 320 + 64
    assert second[-1] == 1696


def test_more_tokens_are_added(cached: Path, copy: Path, write: Write, tmp_path: Path) -> None:
    manifest = write(copy, tokens=1600 + 480)
    assert manifest.tokens("train") == 2080
    assert [shard.rows for shard in manifest.of("train")] == [40] * 5 + [40, 20]
    for name in SHARDS:
        assert (copy / f"{name}.safetensors").read_bytes() == (cached / f"{name}.safetensors").read_bytes()
    # The rows that follow are those that one writer would have written.
    write(tmp_path / "whole", tokens=2080)
    assert held(tmp_path / "whole") == held(copy)


def test_a_text_that_ends_is_written_once(write: Write, tmp_path: Path, tiny_text: Any) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text("".join(Path(tiny_text.corpus).read_text().splitlines(keepends=True)[:30]))
    manifest = write(tmp_path / "c", tokens=10**6, dataset=str(short))
    assert manifest.complete
    tokens = manifest.tokens("train")
    assert 500 < tokens < 3000
    assert write(tmp_path / "c", tokens=10**6, dataset=str(short)) == manifest
    documents = documents_in(tmp_path / "c")
    assert documents == sorted(set(documents)), "none is read twice"


def documents_in(folder: Path) -> list[int]:
    columns = torch.cat([load_file(path)["tokens"] for path in sorted(folder.glob("train-*"))])
    return torch.unique_consecutive(columns[:, 2][columns[:, 1] > 0]).tolist()


# -- damage ----------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, 500)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


def break_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, r"it has 500 bytes, and was written with [\d,]+"),
        (flip, "it holds other bytes than were written"),
        (break_header, "it holds other bytes than were written"),
        (remove, "it cannot be read: No such file or directory"),
    ],
)
@pytest.mark.parametrize("shard", ["train-00002", "validation-00000"])
def test_a_damaged_shard_is_named_and_written_again(
    cached: Path, copy: Path, write: Write, damage: Callable[[Path], None], said: str, shard: str
) -> None:
    damage(copy / f"{shard}.safetensors")
    data = ActivationDataModule(cache=str(copy), site="resid_post.0")
    with refused(CorpusError, rf"data\.cache: .*{shard}\.safetensors is damaged: {said}; `lightsae cache`"):
        data.preflight()
    write(copy)
    assert held(copy) == held(cached)


def test_a_header_of_another_shape_is_refused(copy: Path, cached: Path) -> None:
    cache = Cache.open(str(copy))
    first, second = cache.manifest.of("train")[0], cache.manifest.of("validation")[0]
    with refused(CorpusError, r"cache: .*validation-00000\.safetensors is not a readable shard \(.*\)"):
        # As a manifest would say it whose numbers were changed.
        Shard.open(cache, type(second)(**{**vars(second), "rows": first.rows}))


def test_a_shard_that_is_cut_while_it_is_read(copy: Path) -> None:
    data = ActivationDataModule(cache=str(copy), batch_tokens=32, buffer_tokens=320)
    data.preflight()
    plan = data._plan(1, total_batches=100)
    fills = data.source.fills(plan, Process(tuple(data.source.cache.sites), torch.device("cpu"), torch.float32))
    fills.fill(0)
    for path in copy.glob("train-*"):
        os.truncate(path, 600)
    with refused(CorpusError, r"cache: .*train-0000\d\.safetensors has been cut short since .* ends at byte 600\."):
        fills.fill(1)
    for path in copy.glob("train-*"):
        path.unlink()
    with refused(CorpusError, r"cache: .*train-0000\d\.safetensors can no longer be read: No such file"):
        fills.fill(2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values["identity"].update(dtype="bfloat16"), "its fingerprint is another one"),
        (lambda values: values["shards"][0].pop("rows"), "shards.0.rows is missing"),
        (lambda values: values["shards"][0].update(file="../x"), r"'\.\./x' is no shard"),
        (lambda values: values["identity"].update(sites=[]), "identity has other entries"),
        (lambda values: values.update(shards=3), "shards is a int, where a list should be"),
        (lambda values: values.pop("complete"), "complete is missing"),
        (lambda values: values["identity"]["settings"].update(context_size=0), "context_size is 0"),
    ],
)
def test_a_damaged_manifest(copy: Path, change: Callable[[Any], None], said: str) -> None:
    values = json.loads((copy / NAME).read_text())
    change(values)
    (copy / NAME).write_text(json.dumps(values))
    with refused(CorpusError, said):
        ActivationDataModule(cache=str(copy))


def test_no_manifest_at_all(tmp_path: Path) -> None:
    for folder, said in ((tmp_path, "has no 'cache.json'"), (tmp_path / "none", "does not exist")):
        with refused(FormatError, said):
            ActivationDataModule(cache=str(folder))


# -- what is refused by name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "gpt2"}, r"data\.model is 'gpt2', but data\.cache '.*' was made with '.*tiny_llama.*'"),
        ({"dataset": "other.jsonl"}, r"data\.dataset is 'other\.jsonl', but data\.cache"),
        ({"context_size": 64}, r"data\.context_size is 64, but data\.cache '.*' was made with 8; leave"),
        ({"prepend_bos": False}, r"data\.prepend_bos is False, but data\.cache"),
        ({"quantization": "8bit"}, r"data\.quantization is '8bit', but data\.cache '.*' was made with None; leave"),
        ({"activations": "x.npy"}, r"data\.cache is '.*', and data\.activations names other data"),
        ({"roles": ["user"]}, r"data\.roles: a cache keeps neither datasets nor roles apart; leave it out\."),
        ({"datasets": [MixedDataset("x")]}, r"data\.datasets: a cache keeps neither datasets nor roles apart;"),
    ],
)
def test_a_run_on_other_data(cached: Path, settings: dict[str, Any], said: str) -> None:
    with refused(ConfigError, said):
        ActivationDataModule(cache=str(cached), **settings)


@pytest.mark.parametrize("group", [{"roles": ["user"]}, {"datasets": [MixedDataset("x")], "dataset": None}])
def test_a_writer_of_what_a_cache_cannot_keep(tmp_path: Path, write: Write, group: dict[str, Any]) -> None:
    with refused(
        ConfigError, rf"data\.{next(iter(group))}: a cache keeps neither datasets nor roles apart; leave it out\."
    ):
        write(tmp_path / "c", **group)
    assert not (tmp_path / "c").exists()


def test_a_site_that_is_not_there(cached: Path) -> None:
    with refused(SiteError, r"data\.site is 'resid_post\.1', but data\.cache '.*' holds resid_post\.0, mlp_out\.1;"):
        ActivationDataModule(cache=str(cached), site="resid_post.1").widths_at()
    with refused(ConfigError, r"data\.site is missing: the cache '.*' holds resid_post\.0, mlp_out\.1;"):
        ActivationDataModule(cache=str(cached)).widths_at()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"context_size": 16}, r"data\.context_size is 16, and was 8"),
        ({"site": "resid_post.0"}, r"data\.site is resid_post\.0, and was resid_post\.0, mlp_out\.1"),
        ({"prepend_bos": False}, r"data\.prepend_bos is False, and was None"),
        ({"store_dtype": "bfloat16"}, "the dtype of the shards is bfloat16, and was float32"),
        ({"dtype": "bfloat16"}, r"data\.dtype is bfloat16, and was float32"),
    ],
)
def test_a_writer_with_other_settings(copy: Path, write: Write, settings: dict[str, Any], said: str) -> None:
    before = held(copy)
    with refused(ConfigError, rf"^out is '.*', a cache of other activations: {said}\. Name a new folder"):
        write(copy, **settings)
    assert held(copy) == before


def test_a_cache_of_rounded_weights(
    copy: Path, cached_text: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds of the setting, without the package: nothing where it is not set."""
    monkeypatch.setattr(placement, "find_spec", lambda name: name)
    with refused(ConfigError, r"a cache of other activations: data\.quantization is '8bit', and was None\. Name"):
        write(copy, quantization="8bit")
    rounded = DataSettings(**(cached_text | {"quantization": "8bit"}))
    identity = plans.plan_cache(rounded, copy.parent / "rounded", 1600).identity
    assert identity.settings["quantization"] == "8bit"
    plain = Manifest.read(copy).identity
    assert "quantization" not in plain.settings
    assert identity.difference(plain) == f"{arg('quantization', 'data')} is None, and was '8bit'"
    cache = Cache(str(copy), Manifest(identity))
    assert cache.text_settings(DataSettings())["quantization"] == "8bit"


@pytest.fixture
def own_model(tiny_text: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_text.model, tmp_path / "model"))


def test_weights_that_have_changed(write: Write, own_model: Path, tmp_path: Path) -> None:
    write(tmp_path / "c", model=str(own_model), site="resid_post.0")
    weights = own_model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with refused(ConfigError, r"a cache of other activations: data\.model: what model\.safetensors of .* has changed"):
        write(tmp_path / "c", model=str(own_model), site="resid_post.0")
    loaded = ActivationDataModule(cache=str(tmp_path / "c"), val_tokens=64).source
    refs = tuple(loaded.cache.sites)
    process = Process(refs, torch.device("cpu"), torch.float32)
    loaded.held_out(process)  # nothing of the model is needed
    with refused(ModelError, r"model '.*' is not the one that cache '.*' was made with: model\.safetensors of .* has"):
        loaded.held_out(Process(refs, torch.device("cpu"), torch.float32, whole_models=True))


def test_another_tokenizer(write: Write, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "c", model=str(own_model), site="resid_post.0")
    monkeypatch.setattr(LanguageModel, "special_token_ids", (0, 1, 2))
    with refused(ConfigError, r"a cache of other activations: the tokenizer of '.*' is another one now"):
        write(tmp_path / "c", model=str(own_model), site="resid_post.0")
    source = ActivationDataModule(cache=str(tmp_path / "c"), val_tokens=64).source
    with refused(ModelError, "its tokenizer has changed since"):
        source.held_out(Process(tuple(source.cache.sites), torch.device("cpu"), torch.float32, whole_models=True))


def test_without_the_model_a_run_trains_and_says_what_is_missing(write: Write, own_model: Path, tmp_path: Path) -> None:
    write(tmp_path / "c", model=str(own_model), site="resid_post.0")
    shutil.rmtree(own_model)
    source = ActivationDataModule(cache=str(tmp_path / "c"), val_tokens=64).source
    process = Process(tuple(source.cache.sites), torch.device("cpu"), torch.float32, whole_models=True)
    with pytest.warns(UserWarning, match="There will be no figures of the language model's predictions: "):
        source.held_out(process)
    assert source.language_models == {}


def test_the_model_of_the_cache_is_loaded_where_it_is_needed(cached: Path, cached_text: dict[str, Any]) -> None:
    source = ActivationDataModule(cache=str(cached), val_tokens=64).source
    source.held_out(Process(tuple(source.cache.sites), torch.device("cpu"), torch.bfloat16, whole_models=True))
    (model,) = source.language_models.values()
    assert model.name == cached_text["model"]
    assert model.has_next_token_head
    assert model.dtype == torch.float32, "as the cache was written"


# -- before anything is written --------------------------------------------------------------------------------------


def test_a_disk_without_room(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    # 1,696 tokens of two sites of width 12 in float32, and 20 bytes of what they are.
    with refused(ConfigError, r"^out: \S+ has 0\.00 GB free, and the cache needs 0\.00 GB more; free some"):
        write(tmp_path / "c")
    assert not (tmp_path / "c").exists()
    write(tmp_path / "c", tokens=480)


def test_the_size_that_is_told_is_that_of_the_files(cached: Path, cached_text: dict[str, Any]) -> None:
    plan = plans.plan_cache(DataSettings(**cached_text), cached, 1600)
    size = sum(path.stat().st_size for path in cached.glob("*.safetensors"))
    assert plan.bytes == 1696 * (2 * 12 * 4 + 20)
    assert plan.bytes < size < plan.bytes + 6 * 1000
    assert plan.missing_bytes == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokens": 4}, r"tokens is 4; write data\.context_size \(8\) or more"),
        ({"shard_tokens": 1}, r"shard_tokens is 1; write data\.context_size \(8\) or more"),
        ({"dataset": "synthetic"}, r"data\.dataset: there is no text"),
        ({"site": None}, r"data\.site is missing"),
        ({"site": "resid_post.9"}, r"data\.site is 'resid_post\.9'"),
        ({"model": "./nowhere"}, r"data\.model is '\./nowhere'"),
    ],
)
def test_settings_that_cannot_work(write: Write, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with refused((ConfigError, SiteError, ModelError), said):  # type: ignore[arg-type]
        write(tmp_path / "c", **settings)
    assert not (tmp_path / "c").exists()


def test_a_folder_of_other_files(write: Write, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with refused(ConfigError, "^out is '.*', which holds other files; name a new folder"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_values_beyond_float16_are_said(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = LanguageModel.capture
    monkeypatch.setattr(LanguageModel, "capture", lambda *args: {name: 1e9 * x for name, x in capture(*args).items()})
    with refused(ActivationError, r"resid_post\.0 holds values above 65,504, .*\(store_dtype\)"):
        write(tmp_path / "c", store_dtype="float16")


def test_the_sites_of_several_models(write: Write, make_model: Callable[..., Path], tmp_path: Path) -> None:
    more = str(make_model("gpt2"))
    manifest = write(
        tmp_path / "c", tokens=80, more_models={"other": more}, site=["resid_post.0", "other:resid_post.1"]
    )
    assert [site.name for site in manifest.identity.sites] == ["resid_post.0", "other:resid_post.1"]
    data = ActivationDataModule(cache=str(tmp_path / "c"), site="other:resid_post.1")
    assert list(data.widths_at().read) == [SiteRef(more, "resid_post.1")]
