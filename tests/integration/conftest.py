"""The command line run in this process, in an empty folder, and small inputs for it: good ones and bad ones."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from lightsae.cli import main

# A complete run of three steps; an option that follows replaces the same one here.
SETTINGS = {
    "data.model": "{inputs}/tiny",
    "data.site": "resid_post.1",
    "data.dataset": "{inputs}/text.jsonl",
    "data.context_size": "16",
    "data.batch_tokens": "64",
    "data.buffer_tokens": "256",
    "data.shuffle_tokens": "256",
    "data.val_tokens": "128",
    "data.num_workers": "0",
    "model.sae": "TopK",
    "model.sae.d_sae": "24",
    "model.sae.k": "4",
    "trainer.max_steps": "3",
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
}


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, what it printed, and the files that are new in the folder it ran in."""

    code: int
    out: str
    err: str
    new: list[str]


@pytest.fixture
def lightsae(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Run `lightsae ARGS` in `tmp_path`, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightsae"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it; restored at the end

    def run(*args: str) -> Ended:
        before = set(tmp_path.rglob("*"))
        capsys.readouterr()
        with torch.random.fork_rng(), pytest.raises(SystemExit) as end:
            main(args)
        out, err = capsys.readouterr()
        new = sorted(str(path.relative_to(tmp_path)) for path in set(tmp_path.rglob("*")) - before)
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, out, err, new)

    return run


@pytest.fixture(scope="session")
def complete(inputs: Path) -> Callable[..., list[str]]:
    """Return the options of a complete run but those named; a name leaves out all that begin with it."""

    def options(*without: str) -> list[str]:
        kept = {key: value for key, value in SETTINGS.items() if not key.startswith(without or ("-",))}
        return [word for key, value in kept.items() for word in (f"--{key}", value.format(inputs=inputs))]

    return options


@pytest.fixture
def fit(
    lightsae: Callable[..., Ended], complete: Callable[..., list[str]], inputs: Path, tmp_path: Path
) -> Callable[..., Ended]:
    """Run `lightsae fit` with the options of a complete run (but those `without`), a config file, and more options.

    `{inputs}` in the options and in the file's text stands for the folder of inputs.
    """

    def run(options: str = "", *, without: tuple[str, ...] = (), yaml: str | None = None) -> Ended:
        first = []
        if yaml is not None:
            (tmp_path / "c.yaml").write_text(yaml.replace("{inputs}", str(inputs)))
            first = ["--config", "c.yaml"]
        more = shlex.split(options.replace("{inputs}", str(inputs)))
        return lightsae("fit", *first, *complete(*without), *more)

    return run


@pytest.fixture(scope="session")
def inputs(make_model: Callable[..., Path], tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, texts and activation files."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(make_model("llama"), folder / "tiny")
    _write_overflowing_model(folder / "tiny", folder / "huge")
    _write_truncated_model(folder / "tiny", folder / "cut_model")
    shutil.copy(tiny_corpus, folder / "text.jsonl")
    (folder / "empty.jsonl").touch()
    (folder / "short.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a b", "c d")))
    (folder / "broken.jsonl").write_text('{"text": "whole"}\n{"text": \n')

    rows = np.random.default_rng(0).standard_normal((4000, 12)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "flat.npy", rows[:, 0])
    np.save(folder / "objects.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    np.save(folder / "words.npy", np.array([["a", "b"]] * 100))
    (folder / "cut.npy").write_bytes((folder / "rows.npy").read_bytes()[:1000])
    (folder / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    rows[2000:2032, 3] = np.nan
    np.save(folder / "nan.npy", rows)
    return folder


def _write_overflowing_model(model: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    huge = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        huge.model.layers[0].mlp.up_proj.weight.fill_(1e30)
        huge.model.layers[0].mlp.down_proj.weight.fill_(1e30)
    huge.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def _write_truncated_model(model: Path, folder: Path) -> None:
    shutil.copytree(model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
