"""Tiny random models of thirteen architectures, and how each block is wired, written out by hand.

The others are in `tiny_families`.

Widths differ wherever the architecture lets them (24 residual, 40 joined heads, 52 neurons), so that a mix-up shows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from lightsae.lm import PORTABLE, LanguageModel

VOCAB, WIDTH, NEURONS, LAYERS = 61, 24, 52, 3
# The portable sites of every block here.
SITE_KINDS = tuple(kind for kind in PORTABLE if kind != "mixer_out")


@dataclass(frozen=True)
class Wiring:
    """Paths from a block. `norm` stands before the MLP; `*_norm` between a projection and the residual stream."""

    blocks: str
    attention: str  # the output projection
    norm: str
    up: str
    act: str
    down: str
    gate: str = ""
    attention_norm: str = ""
    mlp_norm: str = ""
    parallel: bool = False
    post_norm: str = ""  # the norm after the second sum, in post-norm models
    embedding_width: int = WIDTH


def _rope(config: type, **kwargs: Any) -> Any:
    return config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=NEURONS,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **kwargs,
    )


_GROUPED = {"num_key_value_heads": 2, "head_dim": 10}
_LLAMA = Wiring(
    "model.layers",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.up_proj",
    "mlp.act_fn",
    "mlp.down_proj",
    gate="mlp.gate_proj",
)
_GEMMA = Wiring(
    "model.layers",
    "self_attn.o_proj",
    "pre_feedforward_layernorm",
    "mlp.up_proj",
    "mlp.act_fn",
    "mlp.down_proj",
    gate="mlp.gate_proj",
    attention_norm="post_attention_layernorm",
    mlp_norm="post_feedforward_layernorm",
)
_ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.67}}
_NEOX = ("gpt_neox.layers", "attention.dense", "post_attention_layernorm")
_NEOX_MLP = ("mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h")
_OPT = ("model.decoder.layers", "self_attn.out_proj")

ARCHITECTURES: dict[str, tuple[Any, Wiring]] = {
    "gpt2": (
        transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=WIDTH, n_inner=NEURONS, n_layer=LAYERS, n_head=4, n_positions=32,
            bos_token_id=1, eos_token_id=2, pad_token_id=2,
        ),
        Wiring("transformer.h", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj"),
    ),
    "gpt_neo": (
        transformers.GPTNeoConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=NEURONS, num_layers=LAYERS, num_heads=4,
            attention_types=[[["global", "local", "global"], 1]], window_size=3, max_position_embeddings=32,
            bos_token_id=1, eos_token_id=2,
        ),
        Wiring("transformer.h", "attn.attention.out_proj", "ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj"),
    ),
    "gpt_neox": (_rope(transformers.GPTNeoXConfig, **_ROTARY), Wiring(*_NEOX, *_NEOX_MLP, parallel=True)),
    "gpt_neox-sequential": (
        _rope(transformers.GPTNeoXConfig, **_ROTARY, use_parallel_residual=False), Wiring(*_NEOX, *_NEOX_MLP),
    ),
    "llama": (_rope(transformers.LlamaConfig, **_GROUPED, mlp_bias=True, attention_bias=True), _LLAMA),
    "mistral": (_rope(transformers.MistralConfig, **_GROUPED, sliding_window=4), _LLAMA),
    "qwen2": (_rope(transformers.Qwen2Config, num_key_value_heads=2, tie_word_embeddings=True), _LLAMA),
    "qwen3": (_rope(transformers.Qwen3Config, **_GROUPED), _LLAMA),
    "gemma2": (_rope(transformers.Gemma2Config, **_GROUPED, sliding_window=4), _GEMMA),
    "gemma3_text": (
        _rope(
            transformers.Gemma3TextConfig, **_GROUPED, sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        _GEMMA,
    ),
    "gemma3": (
        transformers.Gemma3Config(
            text_config=_rope(
                transformers.Gemma3TextConfig, **_GROUPED, sliding_window=4,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            ).to_dict(),
            vision_config={
                "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 28, "patch_size": 14,
            },
            mm_tokens_per_image=4, image_token_index=58, boi_token_index=59, eoi_token_index=60,
        ),
        replace(_GEMMA, blocks="model.language_model.layers"),
    ),
    "phi": (
        _rope(transformers.PhiConfig, **_ROTARY, num_key_value_heads=2),
        Wiring(
            "model.layers", "self_attn.dense", "input_layernorm", "mlp.fc1", "mlp.activation_fn", "mlp.fc2",
            parallel=True,
        ),
    ),
    "opt": (
        transformers.OPTConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, ffn_dim=NEURONS, num_hidden_layers=LAYERS, num_attention_heads=4,
            max_position_embeddings=32, word_embed_proj_dim=WIDTH, bos_token_id=2, eos_token_id=2, pad_token_id=1,
        ),
        Wiring(*_OPT, "final_layer_norm", "fc1", "activation_fn", "fc2"),
    ),
    "opt-post-norm": (
        transformers.OPTConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, ffn_dim=NEURONS, num_hidden_layers=LAYERS, num_attention_heads=4,
            max_position_embeddings=32, word_embed_proj_dim=16, do_layer_norm_before=False, bos_token_id=2,
            eos_token_id=2, pad_token_id=1,
        ),
        Wiring(
            *_OPT, "self_attn_layer_norm", "fc1", "activation_fn", "fc2",
            post_norm="final_layer_norm", embedding_width=16,
        ),
    ),
    "bert": (
        transformers.BertConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=NEURONS, num_hidden_layers=LAYERS,
            num_attention_heads=4, max_position_embeddings=32,
        ),
        Wiring(
            "encoder.layer", "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense",
            "intermediate.intermediate_act_fn", "output.dense", post_norm="output.LayerNorm",
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """A tiny model on disk and in memory."""

    name: str
    folder: Path
    wiring: Wiring
    lm: LanguageModel

    @property
    def blocks(self) -> nn.ModuleList:
        return self.lm.model.get_submodule(self.wiring.blocks)

    @property
    def tokens(self) -> torch.Tensor:
        # 9 positions: longer than every sliding window.
        return torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def architectures() -> list[str]:
    return list(ARCHITECTURES)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write an architecture's model with random weights, norms and biases too, which are otherwise ones and zeros."""

    @cache
    def write(name: str) -> Path:
        config = ARCHITECTURES[name][0]
        folder = tmp_path_factory.mktemp("models") / name
        kind = transformers.BertForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model = kind(config) if name == "bert" else kind.from_config(config)
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session", params=ARCHITECTURES)
def tiny(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Tiny:
    folder = tiny_folder(request.param)
    lm = LanguageModel.from_pretrained(str(folder))
    return Tiny(request.param, folder, ARCHITECTURES[request.param][1], lm)
