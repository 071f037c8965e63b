"""Llama Scope's R1-Distill: a threshold for each latent, and the scale in the file or in the list of releases."""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.layout_files import Cases, D, F, Function, drawn, jump
from helpers.layout_files.llama_scope import linear

HOOK = "blocks.5.hook_resid_post"
# Of 800M-Slimpajama-0-OpenR1-Math-220k/L5R, by the list.
LISTED = 13.77273


def make(folder: Path, path: str, *, norm: float | None, hook: str = HOOK, **settings: object) -> tuple[Path, Function]:
    here = folder / path
    here.mkdir(parents=True)
    tensors = {**linear(), "log_jumprelu_threshold": drawn(F)}
    norms = {} if norm is None else {f"dataset_average_activation_norm.{hook}": torch.tensor(norm)}
    save_file(tensors | norms, here / "sae_weights.safetensors")
    said = {"d_model": D, "expansion_factor": 2, "act_fn": "jumprelu", "norm_activation": "dataset-wise", **settings}
    (here / "config.json").write_text(json.dumps({"hook_point_in": hook, "hook_point_out": hook, **said}))
    W_enc, b_enc, W_dec, b_dec, threshold = tensors.values()
    scale = LISTED if norm is None else D**0.5 / norm
    scale = 1.0 if said["norm_activation"] == "inference" else scale
    by_norm = W_dec.norm(dim=0) if said.get("sparsity_include_decoder_norm") else 1

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = jump(scale * x @ W_enc.T + b_enc, threshold.exp() / by_norm)
        return latents, (latents @ W_dec.T + b_dec) / scale

    return here, function


FOLDER = "800M-Slimpajama-0-OpenR1-Math-220k/L5R"
SAYS: dict[str, object] = {"model": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "site": "resid_post.5"}
CASES: Cases = {
    "norm in the file": (partial(make, path="anywhere", norm=3.0), SAYS),
    "norm in the list": (partial(make, path=FOLDER, norm=None), SAYS),
    "folded": (partial(make, path="anywhere", norm=float("nan"), norm_activation="inference"), SAYS),
    "chosen by decoder norms": (partial(make, path="a", norm=3.0, sparsity_include_decoder_norm=True), SAYS),
}
