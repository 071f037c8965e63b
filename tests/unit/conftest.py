"""Small things to train on: files of activations with a known structure, and a language model with a corpus."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WIDTH = 8


def sparse_sums(rows: int, seed: int = 0, mean: float = 2.0) -> np.ndarray:
    """Sums of a few of 16 fixed directions, away from zero: what a dictionary is good at."""
    draw = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(16, WIDTH))
    strengths = draw.exponential(size=(rows, 16)) * (draw.random((rows, 16)) < 0.15)
    return (strengths @ directions + 0.05 * draw.normal(size=(rows, WIDTH)) + mean).astype(np.float32)


@pytest.fixture
def activation_file(tmp_path: Path) -> Callable[..., str]:
    """Write a .npy file of (rows, 8) activations and return its path."""

    def write(rows: int = 2000, seed: int = 0, mean: float = 2.0, name: str = "acts.npy") -> str:
        path = tmp_path / name
        np.save(path, sparse_sums(rows, seed, mean))
        return str(path)

    return write


@pytest.fixture
def quiet() -> dict[str, Any]:
    """Arguments of a Trainer that does nothing but train."""
    return {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }


@dataclass(frozen=True)
class TinyText:
    """A random Llama of two layers and width 12 in a folder, and a corpus for it."""

    model: str
    corpus: str


@pytest.fixture(scope="session")
def tiny_text(make_model: Callable[..., Path], tiny_corpus: Path) -> TinyText:
    return TinyText(str(make_model("llama")), str(tiny_corpus))
