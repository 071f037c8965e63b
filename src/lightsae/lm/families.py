"""Where the portable sites of an architecture lie: a row per `model_type` of config.json.

`lightsae.lm.sites` says what the names mean. A site is there in a block if the block has its module: in a model whose
blocks differ (dense and mixture of experts, attention and state space) a name may exist in some layers alone.

Source: the modelling files of transformers, read one by one.
"""

from dataclasses import dataclass, replace

Paths = str | tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Where the portable sites of an architecture lie.

    `blocks` and `final_norm` are paths from the base model (the one without a head); all others are paths from a block,
    ending with the side. Of several the first that the block has counts; a name without a path exists in no block.

    Attributes:
        blocks: The list of blocks.
        final_norm: The norm between the residual stream and the unembedding; empty where there is none.
        branch_scale: Setting of config.json by which the blocks multiply what they add to the stream, outside every
            module; empty where there is none.
    """

    blocks: str = "layers"
    resid_pre: Paths = "input"
    attn_z: Paths = ()
    attn_out: Paths = ()
    mixer_out: Paths = ()
    mlp_in: Paths = ()
    mlp_act: Paths = ()
    mlp_out: Paths = ()
    resid_post: Paths = "output"
    final_norm: str = ""
    branch_scale: str = ""

    def paths(self, kind: str) -> tuple[str, ...]:
        """Return the paths that stand for a portable name, such as `attn_out`, from a block."""
        paths: Paths = getattr(self, kind)
        return (paths,) if isinstance(paths, str) else paths


_GPT2 = Family(
    blocks="h",
    attn_z="attn.c_proj.input",
    attn_out="attn.output",
    mlp_in="mlp.input",
    mlp_act="mlp.c_proj.input",
    mlp_out="mlp.output",
    final_norm="ln_f",
)
_GPT_NEO = replace(_GPT2, attn_z="attn.attention.out_proj.input")
_GPT_J = replace(_GPT2, attn_z="attn.out_proj.input", mlp_act="mlp.fc_out.input")
_GPT_NEOX = Family(
    attn_z="attention.dense.input",
    attn_out="attention.output",
    mlp_in="mlp.input",
    mlp_act="mlp.dense_4h_to_h.input",
    mlp_out="mlp.output",
    final_norm="final_layer_norm",
)
_FALCON = replace(
    _GPT_NEOX, blocks="h", attn_z="self_attention.dense.input", attn_out="self_attention.output", final_norm="ln_f"
)
# Its attention and its MLP return the sum with the stream: what they add is what their last products return.
_BLOOM = replace(_FALCON, attn_out="self_attention.dense.output", mlp_out="mlp.dense_4h_to_h.output")

_LLAMA = Family(
    attn_z="self_attn.o_proj.input",
    attn_out="self_attn.output",
    mlp_in="mlp.input",
    mlp_act="mlp.down_proj.input",
    mlp_out="mlp.output",
    final_norm="norm",
)
# Mixtures of experts: of these blocks `mlp.down_proj` is no module, so that there is no `mlp_act`.
_LLAMA_4 = replace(
    _LLAMA, mlp_in="feed_forward.input", mlp_act="feed_forward.down_proj.input", mlp_out="feed_forward.output"
)
_GRANITE = replace(_LLAMA, branch_scale="residual_multiplier")
_GRANITE_MOE = replace(_GRANITE, mlp_in="block_sparse_moe.input", mlp_act=(), mlp_out="block_sparse_moe.output")
_STARCODER = replace(_LLAMA, mlp_act="mlp.c_proj.input")
_PHI = replace(_LLAMA, attn_z="self_attn.dense.input", mlp_act="mlp.fc2.input", final_norm="final_layernorm")
# Norms between attention, MLP and the stream.
_GEMMA = replace(_LLAMA, attn_out="post_attention_layernorm.output", mlp_out="post_feedforward_layernorm.output")
_GLM_4 = replace(_LLAMA, attn_out="post_self_attn_layernorm.output", mlp_out="post_mlp_layernorm.output")
# Linear attention in most blocks.
_QWEN_HYBRID = replace(
    _LLAMA,
    attn_z=("self_attn.o_proj.input", "linear_attn.out_proj.input"),
    attn_out=("self_attn.output", "linear_attn.output"),
)
_MAMBA = Family(mixer_out="mixer.output", final_norm="norm_f")
_JAMBA = replace(_LLAMA_4, mixer_out="mamba.output", final_norm="final_layernorm")

_OPT = Family(
    blocks="decoder.layers",
    attn_z="self_attn.out_proj.input",
    attn_out="self_attn.output",
    mlp_in="fc1.input",
    mlp_act="fc2.input",
    mlp_out="fc2.output",
    final_norm="decoder.final_layer_norm",
)
_BERT = Family(
    blocks="encoder.layer",
    attn_z="attention.output.dense.input",
    attn_out="attention.output.dense.output",
    mlp_in="intermediate.input",
    mlp_act="output.dense.input",
    mlp_out="output.dense.output",
)
_DISTILBERT = Family(
    blocks="transformer.layer",
    attn_z="attention.out_lin.input",
    attn_out="attention.output",
    mlp_in="ffn.input",
    mlp_act="ffn.lin2.input",
    mlp_out="ffn.output",
)
_MODERNBERT = Family(
    attn_z="attn.Wo.input", attn_out="attn.output", mlp_in="mlp.input", mlp_act="mlp.Wo.input", mlp_out="mlp.output"
)
_T5_ENCODER = Family(
    blocks="encoder.block",
    attn_z="layer.0.SelfAttention.o.input",
    attn_out="layer.0.SelfAttention.output",
    mlp_in="layer.1.DenseReluDense.input",
    mlp_act="layer.1.DenseReluDense.wo.input",
    mlp_out="layer.1.DenseReluDense.output",
)
_VIT = Family(
    attn_z="attention.o_proj.input",
    attn_out="attention.output",
    mlp_in="mlp.input",
    mlp_act="mlp.fc2.input",
    mlp_out="mlp.output",
)
_CLIP_VISION = replace(_VIT, blocks="encoder.layers", attn_z="self_attn.out_proj.input", attn_out="self_attn.output")
# The scale of each branch is a module.
_DINO_2 = replace(
    _VIT,
    blocks="encoder.layer",
    attn_out="layer_scale1.output",
    mlp_act=("mlp.fc2.input", "mlp.down_proj.input"),
    mlp_out="layer_scale2.output",
)

# By `model_type` of config.json. A new architecture takes a line here, one in the tests' table and one in the guide's.
FAMILIES = {
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gptj": _GPT_J,
    "gpt_neox": _GPT_NEOX,
    "falcon": _FALCON,
    "bloom": _BLOOM,
    "opt": _OPT,
    "llama": _LLAMA,
    "llama4_text": _LLAMA_4,
    "mistral": _LLAMA,
    "ministral3": _LLAMA,
    "mixtral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen2_moe": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _LLAMA,
    "qwen3_next": _QWEN_HYBRID,
    "qwen3_5_text": _QWEN_HYBRID,
    "qwen3_5_moe_text": _QWEN_HYBRID,
    "gemma": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3": replace(_GEMMA, blocks="language_model.layers", final_norm="language_model.norm"),  # with images
    "gemma3_text": _GEMMA,
    "gpt_oss": _LLAMA,
    "deepseek_v2": _LLAMA,
    "deepseek_v3": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _GEMMA,
    "olmo3": _GEMMA,
    "olmoe": _LLAMA,
    "phi": _PHI,
    "phi3": _LLAMA,
    "stablelm": _LLAMA,
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "granite": _GRANITE,
    "granitemoe": _GRANITE_MOE,
    "smollm3": _LLAMA,
    "glm": _LLAMA,
    "glm4": _GLM_4,
    "glm4_moe": _LLAMA,
    "starcoder2": _STARCODER,
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "mamba2": _MAMBA,
    "jamba": _JAMBA,
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
    "modernbert": _MODERNBERT,
    "t5": _T5_ENCODER,
    "mt5": _T5_ENCODER,
    "umt5": _T5_ENCODER,
    "vit": _VIT,
    "dinov2": _DINO_2,
    "clip_vision_model": _CLIP_VISION,
    "siglip_vision_model": _CLIP_VISION,
}

# Models of several parts of which one is read, by the part's own config: where that stands in theirs.
PARTS = {
    "llama4": "text_config",
    "qwen3_5": "text_config",
    "qwen3_5_moe": "text_config",
    "clip": "vision_config",
    "siglip": "vision_config",
}
# Encoder-decoders of which the encoder is read.
ENCODERS = ("t5", "mt5", "umt5")
