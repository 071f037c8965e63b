"""A small run of what README and guide speak of: an SAE on the built-in model, its feature dictionary, its reports."""

import contextlib
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.fake_versions import EASY, Parts
from helpers.pages import ROOT
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.cli import main
from lightsae.formats.native import describe_sae

FIT = """
fit --data.model builtin --data.site resid_post.2 --data.dataset builtin --data.batch_tokens 512
    --data.buffer_tokens 4096 --data.shuffle_tokens 8192 --data.val_tokens 1024 --data.num_workers 0
    --model.sae TopK --model.sae.d_sae 64 --model.sae.k 8 --trainer.max_steps 4 --trainer.accelerator cpu
    --trainer.enable_progress_bar false --language_model_metrics.max_rows 2
"""
INTERPRET = """
interpret --sae lightning_logs/version_0/sae --out dictionary --tokens 6000 --score_tokens 4000 --mining_tokens 6000
    --num_workers 0 --dashboard false --ablation_windows 0 --neurons false
"""


def lightsae(*args: str) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), torch.random.fork_rng():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # to a user, a warning is no error
            with pytest.raises(SystemExit) as end:
                main(args)
    assert isinstance(end.value.code, int)
    return end.value.code, out.getvalue(), err.getvalue()


def good(*args: str) -> str:
    """Run a command that has to end well; return what it printed."""
    code, out, err = lightsae(*args)
    assert code == 0, f"lightsae {' '.join(args)}\n{err}"
    return out


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the pages are read in; RUN, SAE, SAE_A and SAE_B are names that stand in them."""
    folder = tmp_path_factory.mktemp("pages")
    with _at(folder):
        good(*FIT.split())
        good(*INTERPRET.split())
        (folder / "easy.yaml").write_text(EASY.replace("0.1", "0.0"))
        np.save(folder / "rows.npy", np.random.default_rng(0).standard_normal((4096, 12)).astype(np.float32))
        (folder / "chat.jinja").write_text("{% for m in messages %}# {{ m.role }}\n{{ m.content }}\n{% endfor %}")
        (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": _talk(i)}) + "\n" for i in range(120)))
        saved = folder / "lightning_logs" / "version_0"
        shutil.copytree(saved / "sae", folder / "RUN" / "sae")
        shutil.copytree(folder / "dictionary", folder / "RUN" / "dictionary")
        identity, sha256 = FeatureDictionary.open("dictionary").id, describe_sae(saved / "sae")["sha256"]
        parts = Parts(folder, folder / "dictionary", saved / "sae", identity, sha256)
        for kind, to in {"panel": "RUN/panel", "validation": "lightning_logs/version_1"}.items():
            (folder / to).mkdir()
            parts.report(kind).rename(folder / to / f"{kind}.json")
    return folder


def _talk(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"add {number}"},
        {"role": "assistant", "content": f"def add_{number}(x):\n    return x + {number}"},
    ]


@pytest.fixture
def page_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in; beside it the recipes, as in a checkout."""
    folder = Path(shutil.copytree(run, tmp_path / "page"))
    (folder / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lightsae"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it; restored at the end
    return folder


@pytest.fixture
def command() -> Callable[..., str]:
    return good


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[None]:
    before, argv, seed = os.getcwd(), sys.argv, os.environ.get("PL_GLOBAL_SEED")
    os.chdir(folder)
    sys.argv = ["lightsae"]
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv = argv
        os.environ.pop("PL_GLOBAL_SEED", None)
        if seed is not None:
            os.environ["PL_GLOBAL_SEED"] = seed
