"""Shared by all tests: no network, shape annotations checked at run time, few threads, tiny random language models."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
# Kernels are interpreted on the CPU; read where Triton is imported first.
os.environ["TRITON_INTERPRET"] = "1"

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch


def _jaxtyped(typechecker: Any, of_shapes: Callable[..., Any] = jaxtyping.jaxtyped) -> Callable[[Any], Any]:
    """Check shapes where there are some, and only types elsewhere; binding arguments to shapes is dear.

    Functions in functions are left out: each call would compile their checks, for half of the time of the suite.
    """

    def checked(made: Any) -> Any:
        if "<locals>" in made.__qualname__:
            return made
        if isinstance(made, type):
            return of_shapes(typechecker=typechecker)(made)
        types = made.__annotations__
        # beartype by itself looks for what is named in quotes when it is called, and that may be known to mypy alone.
        if "jaxtyping" in str(types) or any(isinstance(kind, str) for kind in types.values()):
            return of_shapes(typechecker=typechecker)(made)
        return typechecker(made)

    return checked


jaxtyping.jaxtyped = _jaxtyped  # which the hook writes above each function
jaxtyping.install_import_hook("lightsae", "beartype.beartype")
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _small_and_the_same_on_every_processor() -> Iterator[None]:
    """Floors are small; `dtype: auto` is float32: neither bits nor what is said must depend on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightsae.lm.dtypes.bfloat16_speedup", lambda: 1.0)
        # Floors of 512 features beside a dictionary of eight would be most of the time of what interprets it.
        patch.setattr("lightsae.analysis.interpret.floors._FEATURES", 96)
        yield


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """A tokenizer with one token a byte, `<bos>` and `<eos>`; nothing to download, nothing unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<bos>", "<eos>", *alphabet])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="session")
def make_model(byte_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function from a transformers model type (`llama`, `gpt2`, ...) to a folder with a tiny random one."""
    made: dict[tuple[str, int], Path] = {}

    def make(model_type: str = "llama", layers: int = 2) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        if (model_type, layers) not in made:
            sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
            if model_type == "gpt2":
                sizes = {"n_embd": 12, "n_inner": 16, "n_layer": layers, "n_head": 2}
            elif model_type != "gpt_neox":
                sizes |= {"num_key_value_heads": 2}
            config = AutoConfig.for_model(
                model_type,
                vocab_size=len(byte_tokenizer),
                max_position_embeddings=64,
                bos_token_id=0,
                eos_token_id=1,
                **sizes,
            )
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(config)
            folder = tmp_path_factory.mktemp(f"tiny_{model_type}")
            model.save_pretrained(folder)
            byte_tokenizer.save_pretrained(folder)
            made[model_type, layers] = folder
        return made[model_type, layers]

    return make


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 300 short documents with a column `text`."""
    draw = random.Random(0)
    words = "the cat sat on a mat and saw def f(x): return x + 1".split()
    texts = [f"{i} " + " ".join(draw.choices(words, k=draw.randint(5, 30))) for i in range(300)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
