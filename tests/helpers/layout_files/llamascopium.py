"""Llamascopium: each activation function, with and without the decoder's norms in the choice, scaled and folded."""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.layout_files import Cases, D, F, Function, drawn, jump, largest

K, HOOK = 3, "blocks.9.hook_mlp_out"
NORMS = {HOOK: 3.0, "blocks.9.mlp.hook_in": 5.0}


def make(
    folder: Path, act_fn: str, *, across: bool = False, model: str = "", **settings: object
) -> tuple[Path, Function]:
    here = folder / "sae"
    here.mkdir(parents=True)
    said: dict[str, object] = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": F / D,
        "act_fn": act_fn,
        "top_k": K,
        "hook_point_in": "blocks.9.mlp.hook_in" if across else HOOK,
        "hook_point_out": HOOK,
        **settings,
    }
    (here / "config.json").write_text(json.dumps(said))
    if model:
        (here / "lm_config.json").write_text(json.dumps({"model_name": model}))
    by_norm, scaled = said.get("sparsity_include_decoder_norm", True), "norm_activation" not in said
    tensors = {"W_E": drawn(D, F), "b_E": drawn(F), "W_D": drawn(F, D), "b_D": drawn(D)}
    log_threshold = {"activation_function.log_jumprelu_threshold": drawn(F, seed=1)} if act_fn == "jumprelu" else {}
    hooks = (said["hook_point_in"], HOOK)
    norms = {
        f"dataset_average_activation_norm.{hook}": torch.tensor(NORMS[str(hook)] if scaled else torch.nan)
        for hook in hooks
    }
    bias = said.get("use_decoder_bias", True)
    kept = {name: value for name, value in tensors.items() if bias or name != "b_D"}
    save_file({**kept, **log_threshold, **norms}, here / "sae_weights.safetensors")
    s_in, s_out = (D**0.5 / NORMS[str(hook)] if scaled else 1.0 for hook in hooks)
    n = tensors["W_D"].norm(dim=1) if by_norm else torch.ones(F)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        z = (s_in * x @ tensors["W_E"] + tensors["b_E"]) * n
        if act_fn == "jumprelu":
            chosen = jump(z, log_threshold["activation_function.log_jumprelu_threshold"].exp())
        else:
            chosen = z.relu() if act_fn == "relu" else largest(z, K)
        latents = chosen / n
        x_hat = (latents @ tensors["W_D"] + (tensors["b_D"] if bias else 0)) / s_out
        # A TopK of ours chooses by the latents themselves: they are those times n.
        return (chosen if act_fn.endswith("topk") else latents), x_hat

    return here, function


SAYS: dict[str, object] = {"site": "mlp_out.9", "target_site": None, "model": None}
CASES: Cases = {
    "relu": (partial(make, act_fn="relu"), SAYS),
    "jumprelu": (partial(make, act_fn="jumprelu"), SAYS),
    "topk": (partial(make, act_fn="topk", model="qwen3-1.7b"), {**SAYS, "model": "Qwen/Qwen3-1.7B"}),
    "batchtopk": (partial(make, act_fn="batchtopk"), SAYS),
    "jumprelu, folded": (partial(make, act_fn="jumprelu", norm_activation="inference"), SAYS),
    "topk, by z alone": (partial(make, act_fn="topk", sparsity_include_decoder_norm=False), SAYS),
    "jumprelu, by z alone": (partial(make, act_fn="jumprelu", sparsity_include_decoder_norm=False), SAYS),
    "without a bias": (partial(make, act_fn="relu", use_decoder_bias=False), SAYS),
    "transcoder": (
        partial(make, act_fn="jumprelu", across=True),
        {"site": "mlp_in.9", "target_site": "mlp_out.9"},
    ),
}
