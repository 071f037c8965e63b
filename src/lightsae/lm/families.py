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
# With images.
_GEMMA_3 = replace(_GEMMA, blocks="language_model.layers", final_norm="language_model.norm")
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

# Each with its `model_type`s of config.json. A new architecture takes a word here, one in the tests' table and one in
# the guide's.
_TYPES = (
    (_GPT2, "gpt2"),
    (_GPT_NEO, "gpt_neo"),
    (_GPT_J, "gptj"),
    (_GPT_NEOX, "gpt_neox"),
    (_FALCON, "falcon"),
    (_BLOOM, "bloom"),
    (_OPT, "opt"),
    (
        _LLAMA,
        "llama mistral ministral3 mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma gpt_oss deepseek_v2 deepseek_v3 olmo "
        "olmoe phi3 stablelm cohere cohere2 smollm3 glm glm4_moe",
    ),
    (_LLAMA_4, "llama4_text"),
    (_QWEN_HYBRID, "qwen3_next qwen3_5_text qwen3_5_moe_text"),
    (_GEMMA, "gemma2 gemma3_text olmo2 olmo3"),
    (_GEMMA_3, "gemma3"),
    (_PHI, "phi"),
    (_GRANITE, "granite"),
    (_GRANITE_MOE, "granitemoe"),
    (_GLM_4, "glm4"),
    (_STARCODER, "starcoder2"),
    (_MAMBA, "mamba falcon_mamba mamba2"),
    (_JAMBA, "jamba"),
    (_BERT, "bert roberta xlm-roberta electra"),
    (_DISTILBERT, "distilbert"),
    (_MODERNBERT, "modernbert"),
    (_T5_ENCODER, "t5 mt5 umt5"),
    (_VIT, "vit"),
    (_DINO_2, "dinov2"),
    (_CLIP_VISION, "clip_vision_model siglip_vision_model"),
)
FAMILIES = {name: family for family, names in _TYPES for name in names.split()}

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
