"""`lightsae cache` and the commands that read what it wrote: fit, validate, interpret; killed and gone on with."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers import own_process
from helpers.command_line import lightsae_at
from lightsae.activations.cache.manifest import Manifest
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.formats.saved_sae import SavedSAE

TEXT = {
    "data.site": "resid_post.1",
    "data.context_size": "16",
    "data.val_tokens": "256",
    "data.num_workers": "0",
    "data.validation_fraction": "0.2",
}
RUN = Path("lightning_logs", "version_0")
TRAINING = [
    *("--data.batch_tokens", "64", "--data.buffer_tokens", "512", "--model.sae", "TopK", "--model.sae.d_sae", "24"),
    *("--model.sae.k", "4", "--trainer.max_steps", "60", "--trainer.accelerator", "cpu"),
    *("--checkpoint.every_n_train_steps", "20", "--trainer.enable_progress_bar", "false"),
]


def options(inputs: Path, **others: str) -> list[str]:
    settings = {"data.model": str(inputs / "tiny"), "data.dataset": str(inputs / "text.jsonl"), **TEXT, **others}
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


@pytest.fixture(scope="module")
def folder(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a cache, and a run on it."""
    folder = tmp_path_factory.mktemp("cache")
    with lightsae_at(folder) as lightsae:
        said = lightsae("cache", *options(inputs), "--out", "cache", "--tokens", "4096", "--shard_tokens", "1024")
        (folder / "said.txt").write_text(said)
        (folder / "fitted.txt").write_text(lightsae("fit", "--data.cache", "cache", *TRAINING))
    return folder


def test_it_says_what_it_writes(folder: Path, inputs: Path) -> None:
    said = (folder / "said.txt").read_text()
    size = (4096 + 256) * (12 * 4 + 20) / 1e6
    for line in (
        "sites   resid_post.1 (width 12)",
        f"model   {inputs}/tiny, in float32 on cpu",
        f"text    {inputs}/text.jsonl, rows of 16 tokens",
        f"size    {size:.1f} MB in float32: 4,352 tokens",
        "folder  cache",
        "4,096 tokens to train on, 256 held out; fingerprint ",
        "train on it  lightsae fit --data.cache cache ...",
    ):
        assert line in said
    assert "4,352 tokens written, " in said


def test_fit_says_where_it_reads(folder: Path) -> None:
    assert "data    cache cache: 3,840 tokens in 60 steps of 64" in (folder / "fitted.txt").read_text()


def test_a_run_on_it_measures_the_model_s_predictions(folder: Path) -> None:
    with lightsae_at(folder) as lightsae:
        # An option wins over the file, which says that there is no checkpoint, also where it stands before it.
        lightsae("validate", "--ckpt_path", "last", "--config", str(RUN / "config.yaml"))
    figures = json.loads((folder / "lightning_logs" / "version_1" / "validation.json").read_text())["figures"]
    assert {"val/fve", "val/fve_no_sinks", "val/ce_recovered", "val/ce_recovered_no_sinks", "val/kl"} <= set(figures)


def test_what_it_exports_knows_model_and_text(folder: Path, inputs: Path) -> None:
    saved = SavedSAE.open(folder / RUN / "sae")
    assert saved.provenance.model == str(inputs / "tiny")
    loaded = LoadedSAE.load(saved, TextSettings(num_workers=0))
    assert loaded.corpus.dataset == str(inputs / "text.jsonl")
    assert (loaded.corpus.context_size, loaded.corpus.validation_fraction) == (16, 0.2)
    assert [site.site for site in loaded.reading.sites] == ["resid_post.1"]
    assert len(loaded.held_out_rows(256)) == 16


def test_the_held_out_text_is_that_of_a_run_on_text(folder: Path, inputs: Path) -> None:
    """The same SAE has the same figures on the cache's held-out tokens and on those made anew."""
    with lightsae_at(folder) as lightsae:
        both = []
        for data in (["--data.cache", "cache"], ["--data.cache", "null", *options(inputs)]):
            config = ["--config", str(RUN / "config.yaml"), *data, "--ckpt_path", "last"]
            before = set((folder / "lightning_logs").iterdir())
            lightsae("validate", *config)
            (run,) = set((folder / "lightning_logs").iterdir()) - before
            both.append(json.loads((run / "validation.json").read_text()))
    on_cache, on_text = both
    assert on_cache["figures"] == pytest.approx(on_text["figures"], rel=1e-4)
    assert "val/ce_recovered" in on_text["figures"]
    for name in ("model", "dataset", "context_size"):
        assert on_cache["data"][name] == on_text["data"][name]


def test_resumed_it_ends_in_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").symlink_to(folder / "cache")
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    killed = [*TRAINING, "--allow_classes", "helpers.kill_at", "--trainer.callbacks", "helpers.kill_at.KillAt"]
    first = own_process.finish(
        ["fit", "--data.cache", "cache", *killed, "--data.prefetch", "true"],
        tmp_path,
        environment | {"KILL_AT_STEP": "47"},
    )
    assert first.returncode == -9, first.stderr[-3000:]
    config = ["--config", str(RUN / "config.yaml"), "--ckpt_path", "last", "--allow_classes", "helpers.kill_at"]
    again = own_process.finish(["fit", *config], tmp_path, environment)
    assert again.returncode == 0, again.stderr[-3000:]
    saved = RUN / "sae" / "sae.safetensors"
    assert (tmp_path / saved).read_bytes() == (folder / saved).read_bytes(), "and made ahead or not"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_run_that_makes_fills_ahead_ends_when_it_is_stopped(
    inputs: Path, tmp_path: Path, name: str, code: int
) -> None:
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    stopped = ["--allow_classes", "helpers.signal_at", "--trainer.callbacks", "helpers.signal_at.SignalAt"]
    done = own_process.finish(
        ["fit", *options(inputs), *TRAINING, *stopped, "--data.prefetch", "true"],
        tmp_path,
        environment | {"SIGNAL_AT": f"15 0 {name}"},
    )
    assert done.returncode == code, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("lightsae: ")]
    assert [line.partition(" Go on:")[0] for line in said] == ["lightsae: stopped."]


def test_an_estimate_refuses_it_by_name(folder: Path) -> None:
    with lightsae_at(folder) as lightsae:
        said = lightsae("estimate", "--data.cache", "cache", *TRAINING, code=2)
    assert "data.cache: an estimate knows runs that make their activations" in said


def test_another_cache_under_the_same_name_is_noticed(folder: Path, inputs: Path, tmp_path: Path) -> None:
    with lightsae_at(tmp_path) as lightsae:
        lightsae("cache", *options(inputs), "--out", "cache", "--tokens", "2048")
        (tmp_path / "run").symlink_to(folder / RUN)
        (tmp_path / "lightning_logs").mkdir()
        checkpoint = str(folder / RUN / "checkpoints" / "last.ckpt")
        said = lightsae("fit", "--data.cache", "cache", *TRAINING, "--ckpt_path", checkpoint, code=2)
    assert "data.cache: what cache held has changed since the checkpoint was written" in said


def test_every_site_of_a_file_of_fit_is_written(folder: Path, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"""
seed_everything: 3
trainer: {{max_steps: 4, accelerator: cpu, enable_progress_bar: false}}
model:
  lr: 0.01
  saes:
    one: {{sae: {{class_path: TopK, init_args: {{d_sae: 24, k: 4}}}}}}
    two:
      sae: {{class_path: Transcoder, init_args: {{d_sae: 24, mechanism: {{class_path: TopK, init_args: {{k: 4}}}}}}}}
      site: mlp_in.0
      target_site: mlp_out.0
data:
  model: {inputs}/tiny
  dataset: {inputs}/text.jsonl
  site: resid_post.1
  context_size: 16
  val_tokens: 128
  num_workers: 0
  batch_tokens: 64
  buffer_tokens: 512
""")
    with lightsae_at(tmp_path) as lightsae:
        lightsae("cache", "--config", "run.yaml", "--out", "c", "--tokens", "1024")
        sites = [site.name for site in Manifest.read(tmp_path / "c").identity.sites]
        assert sites == ["resid_post.1", "mlp_in.0", "mlp_out.0"]
        lightsae("fit", "--config", "run.yaml", "--data.cache", "c")
        assert {path.name for path in (tmp_path / RUN / "sae").iterdir()} == {"one", "two"}
        said = lightsae("fit", "--config", "run.yaml", "--data.cache", "c", "--data.model", "gpt2", code=2)
        assert "data.model is 'gpt2', but data.cache 'c' was made with" in said
        said = lightsae("fit", "--config", "run.yaml", "--data.cache", "c", "--data.site", "mlp_act.0", code=2)
        assert "data.site is 'mlp_act.0', but data.cache 'c' holds resid_post.1, mlp_in.0, mlp_out.0" in said


def test_a_killed_writer_goes_on_to_the_same_bytes(folder: Path, inputs: Path, tmp_path: Path) -> None:
    args = ["cache", *options(inputs), "--out", "cache", "--tokens", "4096", "--shard_tokens", "1024"]
    # What `auto` is in this process, and would not be in a new one on every machine.
    args += ["--data.dtype", "float32"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    draw = np.random.default_rng()
    for _ in range(2):
        # Of one row each, so that the passes take a while.
        process = own_process.start(
            [*args, "--data.model_batch_tokens", "16"], tmp_path, environment, tmp_path / "out", tmp_path / "err"
        )
        while process.is_alive() and not (tmp_path / "cache" / "cache.json").is_file():
            time.sleep(0.01)
        time.sleep(float(draw.uniform(0, 0.3)))
        process.kill()
        process.join()
        assert process.exitcode in (-9, 0), (tmp_path / "err").read_text()[-2000:]
        entries = Manifest.read(tmp_path / "cache").shards
        assert all((tmp_path / "cache" / entry.file).stat().st_size == entry.bytes for entry in entries)
    with lightsae_at(tmp_path) as lightsae:
        if not Manifest.read(tmp_path / "cache").complete:
            said = lightsae("fit", "--data.cache", "cache", *TRAINING, code=2)
            assert "data.cache is 'cache', which is not complete" in said
        lightsae(*args, "--data.model_batch_tokens", "16")
    again = tmp_path / "whole"
    again.mkdir()
    with lightsae_at(again) as lightsae:
        lightsae(*args, "--data.model_batch_tokens", "16")
    names = sorted(path.name for path in (again / "cache").iterdir())
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == names, "nothing is left over"
    for name in names:
        assert (again / "cache" / name).read_bytes() == (tmp_path / "cache" / name).read_bytes()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--tokens", "100"], "out is missing. Write: lightsae cache --data.model MODEL"),
        (["--out", "c"], "tokens is missing. Write: lightsae cache"),
        (["--out", "c", "--tokens", "1"], "tokens is 1; write data.context_size (16) or more"),
        (["--out", "c", "--tokens", "100", "--data.context_size", "1"], "data.context_size is 1; write 2 or more"),
        (["--out", "c", "--tokens", "100", "--data.batch_tokens", "8"], "data.batch_tokens"),
        (["--out", "c", "--tokens", "100", "--store_dtype", "int8"], "store_dtype"),
        (["--out", "c", "--tokens", "100", "--device", "cuda:7"], "device is 'cuda:7'"),
    ],
)
def test_mistakes(inputs: Path, tmp_path: Path, args: list[str], said: str) -> None:
    with lightsae_at(tmp_path) as lightsae:
        printed = lightsae("cache", *options(inputs), *args, code=2)
    assert said in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
