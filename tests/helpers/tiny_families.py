"""Tiny random models of the architectures that `tiny_models` does not wire by hand, one build per session for each.

Of every architecture both kinds of block, where it has two: dense and mixture of experts, attention and state space.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from lightsae.lm import LanguageModel

VOCAB, WIDTH, LAYERS = 61, 16, 2
_ALL = ("resid_pre", "attn_z", "attn_out", "mlp_in", "mlp_act", "mlp_out", "resid_post")
_EXPERTS = tuple(kind for kind in _ALL if kind != "mlp_act")
_MIXER = ("resid_pre", "mixer_out", "resid_post")


@dataclass(frozen=True)
class Case:
    """A tiny model as it is saved.

    Attributes:
        config: Of what is saved.
        saved: Its class, where that is not AutoModelForCausalLM.
        kinds: The portable sites of each of its layers.
        post_norms: Paths from a block of the norms of the two sums, in post-norm models.
        states: Number of the entry of `output_hidden_states` that is resid_pre.0; Mamba's has none.
    """

    config: Any
    saved: str = "AutoModelForCausalLM"
    kinds: tuple[tuple[str, ...], ...] = (_ALL, _ALL)
    post_norms: tuple[str, ...] = ()
    states: int = 0


def _small(config: type, **kwargs: Any) -> Any:
    shared = {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0,
    }  # fmt: skip
    return config(**(shared | kwargs))


_HEADS = {"num_key_value_heads": 1, "head_dim": 10}
_GROUPED = {"num_key_value_heads": 1}
_FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 1, "topk_group": 1}
_LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10,
    "first_k_dense_replace": 1,
}  # fmt: skip
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 6, "linear_value_head_dim": 10,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_SEEN = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_VISION = {**_SEEN, "intermediate_size": 20}
_LLAMA_4 = _small(
    hf.Llama4TextConfig, **_HEADS, intermediate_size_mlp=40, num_local_experts=2, attention_chunk_size=32,
    moe_layers=[1], no_rope_layers=[1, 0],
)  # fmt: skip
_QWEN_3_5 = _small(hf.Qwen3_5TextConfig, **_HEADS, **_DELTA)
_QWEN_3_5_MOE = _small(hf.Qwen3_5MoeTextConfig, **_HEADS, **_DELTA, **_FEW, shared_expert_intermediate_size=8)
_QWEN_VISION = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 14, "out_hidden_size": WIDTH,
}  # fmt: skip
_CLIP_TEXT = {"vocab_size": VOCAB, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_BERT_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
_T5 = {"vocab_size": VOCAB, "d_model": WIDTH, "d_kv": 10, "d_ff": 20, "num_heads": 2, "num_layers": LAYERS}
_MAMBA = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "state_size": 4, "num_hidden_layers": LAYERS, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_MLM = "AutoModelForMaskedLM"

# By `model_type`; what follows a colon tells variants apart.
CASES: dict[str, Case] = {
    "gptj": Case(
        hf.GPTJConfig(
            vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_inner=20, n_positions=32, rotary_dim=4,
            bos_token_id=1, eos_token_id=2,
        )
    ),
    "falcon": Case(_small(hf.FalconConfig)),
    "falcon:new": Case(_small(hf.FalconConfig, new_decoder_architecture=True, num_kv_heads=1, bias=True)),
    "falcon:sequential": Case(_small(hf.FalconConfig, parallel_attn=False, alibi=True, multi_query=False)),
    "bloom": Case(
        hf.BloomConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, n_layer=LAYERS, n_head=2, bos_token_id=1, eos_token_id=2
        )
    ),
    "llama4_text": Case(_LLAMA_4, kinds=(_ALL, _EXPERTS)),
    "llama4": Case(
        hf.Llama4Config(
            text_config=_LLAMA_4.to_dict(),
            vision_config={
                "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 28, "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16,
                "projector_output_dim": 16,
            },
        ),
        "Llama4ForConditionalGeneration",
        kinds=(_ALL, _EXPERTS),
    ),
    "ministral3": Case(_small(hf.Ministral3Config, **_HEADS)),
    "mixtral": Case(_small(hf.MixtralConfig, **_HEADS, num_local_experts=4), kinds=(_EXPERTS, _EXPERTS)),
    "qwen2_moe": Case(
        _small(hf.Qwen2MoeConfig, **_GROUPED, **_FEW, shared_expert_intermediate_size=8, mlp_only_layers=[1]),
        kinds=(_EXPERTS, _ALL),
    ),
    "qwen3_moe": Case(_small(hf.Qwen3MoeConfig, **_HEADS, **_FEW), kinds=(_EXPERTS, _EXPERTS)),
    "qwen3_next": Case(
        _small(hf.Qwen3NextConfig, **_HEADS, **_DELTA, **_FEW, shared_expert_intermediate_size=8),
        kinds=(_EXPERTS, _EXPERTS),
    ),
    "qwen3_5_text": Case(_QWEN_3_5),
    "qwen3_5": Case(
        hf.Qwen3_5Config(text_config=_QWEN_3_5.to_dict(), vision_config=_QWEN_VISION),
        "Qwen3_5ForConditionalGeneration",
    ),
    "qwen3_5_moe_text": Case(_QWEN_3_5_MOE, kinds=(_EXPERTS, _EXPERTS)),
    "qwen3_5_moe": Case(
        hf.Qwen3_5MoeConfig(text_config=_QWEN_3_5_MOE.to_dict(), vision_config=_QWEN_VISION),
        "Qwen3_5MoeForConditionalGeneration",
        kinds=(_EXPERTS, _EXPERTS),
    ),
    "gemma": Case(_small(hf.GemmaConfig, **_HEADS)),
    "gpt_oss": Case(
        _small(hf.GptOssConfig, **_HEADS, **_SLIDING, num_local_experts=4, num_experts_per_tok=2),
        kinds=(_EXPERTS, _EXPERTS),
    ),
    "deepseek_v2": Case(
        _small(hf.DeepseekV2Config, **_LATENT, **_ROUTED, n_shared_experts=1), kinds=(_ALL, _EXPERTS)
    ),
    "deepseek_v3": Case(
        _small(hf.DeepseekV3Config, **_LATENT, **_ROUTED, n_shared_experts=1), kinds=(_ALL, _EXPERTS)
    ),
    "olmo": Case(_small(hf.OlmoConfig, **_GROUPED)),
    "olmo2": Case(_small(hf.Olmo2Config, **_GROUPED)),
    "olmo3": Case(_small(hf.Olmo3Config, **_GROUPED, **_SLIDING)),
    "olmoe": Case(_small(hf.OlmoeConfig, num_experts=4, num_experts_per_tok=2), kinds=(_EXPERTS, _EXPERTS)),
    "phi3": Case(_small(hf.Phi3Config, **_GROUPED)),
    "stablelm": Case(_small(hf.StableLmConfig, **_GROUPED)),
    "stablelm:parallel": Case(_small(hf.StableLmConfig, **_GROUPED, use_parallel_residual=True)),
    "cohere": Case(_small(hf.CohereConfig, **_GROUPED, logit_scale=0.3)),
    "cohere2": Case(_small(hf.Cohere2Config, **_GROUPED, **_SLIDING)),
    "granite": Case(_small(hf.GraniteConfig, **_GROUPED, residual_multiplier=0.22, logits_scaling=8.0)),
    "granitemoe": Case(
        _small(hf.GraniteMoeConfig, **_GROUPED, residual_multiplier=0.22, num_local_experts=4),
        kinds=(_EXPERTS, _EXPERTS),
    ),
    "smollm3": Case(_small(hf.SmolLM3Config, **_GROUPED, no_rope_layers=[1, 0])),
    "glm": Case(_small(hf.GlmConfig, **_HEADS)),
    "glm4": Case(_small(hf.Glm4Config, **_HEADS)),
    "glm4_moe": Case(
        _small(hf.Glm4MoeConfig, **_HEADS, **_ROUTED, n_shared_experts=1, first_k_dense_replace=1),
        kinds=(_ALL, _EXPERTS),
    ),
    "starcoder2": Case(_small(hf.Starcoder2Config, **_GROUPED, sliding_window=4)),
    "mamba": Case(hf.MambaConfig(**_MAMBA), kinds=(_MIXER, _MIXER), states=-1),
    "falcon_mamba": Case(hf.FalconMambaConfig(**_MAMBA), kinds=(_MIXER, _MIXER), states=-1),
    "mamba2": Case(
        hf.Mamba2Config(**_MAMBA, num_heads=4, head_dim=8, n_groups=1, chunk_size=4), kinds=(_MIXER, _MIXER), states=-1
    ),
    "jamba": Case(
        _small(
            hf.JambaConfig, **_GROUPED, num_experts=2, attn_layer_period=2, attn_layer_offset=1,
            expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4, use_mamba_kernels=False,
        ),
        kinds=(("resid_pre", "mixer_out", "mlp_in", "mlp_act", "mlp_out", "resid_post"), _EXPERTS),
    ),
    "roberta": Case(_small(hf.RobertaConfig, max_position_embeddings=64), _MLM, post_norms=_BERT_NORMS),
    "xlm-roberta": Case(_small(hf.XLMRobertaConfig, max_position_embeddings=64), _MLM, post_norms=_BERT_NORMS),
    "electra": Case(_small(hf.ElectraConfig, embedding_size=12), _MLM, post_norms=_BERT_NORMS),
    "distilbert": Case(
        hf.DistilBertConfig(
            vocab_size=VOCAB, dim=WIDTH, hidden_dim=20, n_layers=LAYERS, n_heads=2, max_position_embeddings=32
        ),
        _MLM,
        post_norms=("sa_layer_norm", "output_layer_norm"),
    ),
    "modernbert": Case(
        _small(
            hf.ModernBertConfig, cls_token_id=1, sep_token_id=2, local_attention=4,
            layer_types=["full_attention", "sliding_attention"],
        ),
        _MLM,
    ),
    "t5": Case(hf.T5Config(**_T5), "T5ForConditionalGeneration"),
    "mt5": Case(hf.MT5Config(**_T5, feed_forward_proj="gated-gelu"), "MT5ForConditionalGeneration"),
    "umt5": Case(hf.UMT5Config(**_T5), "UMT5ForConditionalGeneration"),
    "vit": Case(hf.ViTConfig(**_VISION), "ViTForImageClassification"),
    "dinov2": Case(hf.Dinov2Config(**_SEEN, mlp_ratio=2), "AutoModel"),
    "dinov2:gated": Case(hf.Dinov2Config(**_SEEN, mlp_ratio=2, use_swiglu_ffn=True), "AutoModel"),
    "clip_vision_model": Case(hf.CLIPVisionConfig(**_VISION), "CLIPVisionModel"),
    "clip": Case(hf.CLIPConfig(text_config=_CLIP_TEXT, vision_config=_VISION), "CLIPModel"),
    "siglip_vision_model": Case(hf.SiglipVisionConfig(**_VISION), "SiglipVisionModel"),
    "siglip": Case(hf.SiglipConfig(text_config=_CLIP_TEXT, vision_config=_VISION), "SiglipModel"),
}  # fmt: skip


@dataclass(frozen=True)
class TinyFamily:
    """A case on disk, and loaded whole."""

    name: str
    case: Case
    folder: Path
    lm: LanguageModel
    rows: Tensor = field(repr=False)

    @property
    def names(self) -> list[str]:
        """Its portable sites."""
        return [f"{kind}.{layer}" for layer, kinds in enumerate(self.case.kinds) for kind in kinds]

    def output(self) -> Tensor:
        """The last thing the model computes: logits, or the last hidden states of an encoder."""
        with torch.inference_mode():
            return self.lm.model(self.rows)[0]


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a case with random weights: norms and biases too, which are otherwise ones and zeros."""

    @cache
    def write(name: str) -> Path:
        case, folder = CASES[name], tmp_path_factory.mktemp("family") / name.replace(":", "-")
        kind = getattr(hf, case.saved)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model = kind.from_config(case.config) if case.saved.startswith("Auto") else kind(case.config)
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="module", params=CASES)
def family(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> TinyFamily:
    folder = family_folder(request.param)
    lm = LanguageModel.from_pretrained(str(folder), dtype="float32")
    generator = torch.Generator().manual_seed(1)
    # 9 positions: longer than every sliding window.
    tokens, pixels = (
        torch.randint(3, VOCAB, (2, 9), generator=generator),
        torch.randn(2, 3, 28, 28, generator=generator),
    )
    return TinyFamily(request.param, CASES[request.param], folder, lm, pixels if lm.reads_images else tokens)
