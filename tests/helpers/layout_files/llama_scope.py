"""Llama Scope's first release: a scale for what is read and one for what is predicted, and one threshold."""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.layout_files import Cases, D, F, Function, drawn

THRESHOLD = 0.7
NORMS = {"in": 4.0, "out": 4.0}
HOOK = "blocks.24.hook_resid_post"


def linear(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    tensors = {
        "encoder.weight": drawn(F, D),
        "encoder.bias": drawn(F),
        "decoder.weight": drawn(D, F, seed=1),
        "decoder.bias": drawn(D),
    }
    return {name: value.to(dtype) for name, value in tensors.items()}


def make(
    folder: Path, dtype: torch.dtype = torch.float32, norms: dict[str, float] = NORMS, **settings: object
) -> tuple[Path, Function]:
    here = folder / "Llama3_1-8B-Base-L24R-8x"
    (here / "checkpoints").mkdir(parents=True)
    tensors = linear(dtype)
    save_file(tensors, here / "checkpoints" / "final.safetensors")
    said = {
        "d_model": D,
        "d_sae": F,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "act_fn": "jumprelu",
        "jump_relu_threshold": THRESHOLD,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": norms,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "top_k": 50,
        **settings,
    }
    (here / "hyperparams.json").write_text(json.dumps(said))
    W_enc, b_enc, W_dec, b_dec = (value.float() for value in tensors.values())
    scaled = said["norm_activation"] == "dataset-wise"
    s_in, s_out = (D**0.5 / norms[side] if scaled else 1.0 for side in ("in", "out"))
    centre = b_dec if said["apply_decoder_bias_to_pre_encoder"] else 0
    norm = W_dec.norm(dim=0) if said.get("sparsity_include_decoder_norm") else 1

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        z = (s_in * x - centre) @ W_enc.T + b_enc
        # The threshold is in raw units.
        latents = torch.where(z * norm > THRESHOLD * s_in, z, 0).relu()
        return latents, (latents @ W_dec.T + b_dec) / s_out

    return here, function


SAYS: dict[str, object] = {
    "model": "meta-llama/Llama-3.1-8B",
    "site": "resid_post.24",
    "target_site": None,
    "context_size": 1024,
    "dataset": "cerebras/SlimPajama-627B",
}
ACROSS = {"hook_point_in": "blocks.3.mlp.hook_in", "hook_point_out": "blocks.3.hook_mlp_out"}
CASES: Cases = {
    "bfloat16": (partial(make, dtype=torch.bfloat16), SAYS),
    "two scales": (
        partial(make, norms={"in": 4.0, "out": 0.5}, **ACROSS),
        {"site": "mlp_in.3", "target_site": "mlp_out.3"},
    ),
    "centred": (partial(make, apply_decoder_bias_to_pre_encoder=True), SAYS),
    "chosen by decoder norms": (partial(make, sparsity_include_decoder_norm=True), SAYS),
    "folded": (partial(make, norm_activation="inference"), SAYS),
}
