"""SAEs of other libraries, as somebody may send them: one reader for each layout, on files of its contract's cases."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fuzz.readers.base import Reader
from helpers.layout_files import Cases, gemma_scope, gemma_scope_2, llama_scope, llama_scope_r1, llamascopium, pickled
from lightsae.formats.layouts import LAYOUTS
from lightsae.formats.saved_sae import SavedSAE

# Of each layout one case, and where its files lie.
_CASES: dict[str, tuple[Cases, str, str]] = {
    "gemma_scope": (gemma_scope.CASES, "lower case", gemma_scope.RESIDUAL),
    "gemma_scope_2": (gemma_scope_2.CASES, "attention, elsewhere", "a"),
    "llama_scope": (llama_scope.CASES, "bfloat16", "Llama3_1-8B-Base-L24R-8x"),
    "llama_scope_r1": (llama_scope_r1.CASES, "chosen by decoder norms", "a"),
    "llamascopium": (llamascopium.CASES, "jumprelu", "sae"),
    "qwen_scope": (pickled.BY_LAYOUT["qwen_scope"], "a file", "SAE-Res-Qwen3-8B-Base-W64K-L0_5/layer18.sae.pt"),
    "goodfire": (pickled.BY_LAYOUT["goodfire"], "70B, a folder", ""),
    "deepseek_r1": (pickled.BY_LAYOUT["deepseek_r1"], "8B", pickled.R1),
}


def _make(folder: Path, make: Callable[[Path], Any]) -> None:
    make(folder)


def _read(folder: Path, path: str) -> None:
    saved = SavedSAE.open(folder / path)
    assert saved.provenance.values["layout"] in LAYOUTS
    assert all(bool(tensor.isfinite().all()) for tensor in saved.sae.state_dict().values())
    json.dumps(saved.entry, allow_nan=False)
    x = torch.ones(3, saved.sae.d_in)
    assert saved.sae(x).x_hat.shape == (3, saved.sae.d_out)


LAYOUT_READERS: dict[str, Reader] = {
    f"layout_{name}": Reader(make=partial(_make, make=cases[case][0]), read=partial(_read, path=path))
    for name, (cases, case, path) in _CASES.items()
}
