"""Small things to train on: files of activations with a known structure, and a language model with a corpus."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
    """A random Llama of two layers in a folder, its tokenizer, and a corpus for it."""

    model: str
    corpus: str
    width: int = 12


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> TinyText:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_text")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<bos>", "<eos>", *alphabet])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=12,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
        )
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(0)
    words = "the cat sat on a mat and saw def f(x): return x + 1".split()
    texts = [f"{i} " + " ".join(draw.choices(words, k=draw.randint(1, 30))) for i in range(120)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TinyText(str(folder / "model"), str(corpus))
