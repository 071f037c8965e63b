"""Gemma Scope 2: with and without config.json, a transcoder with and without its skip connection."""

import json
from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from helpers.layout_files import Cases, D, F, Function, drawn, jump
from lightsae.formats.layouts.source import UNKNOWN_TARGET


def make(folder: Path, path: str, *, skip: bool = False, **config: object) -> tuple[Path, Function]:
    here = folder / path
    here.mkdir(parents=True)
    tensors = {
        "w_enc": drawn(D, F),
        "b_enc": drawn(F),
        "w_dec": drawn(F, D),
        "b_dec": drawn(D),
        "threshold": drawn(F).abs(),
    }
    if skip:
        tensors["affine_skip_connection"] = drawn(D, D)
    save_file(tensors, here / "params.safetensors")
    if config:
        (here / "config.json").write_text(json.dumps({"architecture": "jump_relu", "width": F, **config}))

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = jump(x @ tensors["w_enc"] + tensors["b_enc"], tensors["threshold"])
        straight = x @ tensors["affine_skip_connection"] if skip else 0
        return latents, latents @ tensors["w_dec"] + tensors["b_dec"] + straight

    return here, function


MLP = {
    "hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output",
}
HEADS = "model.language_model.layers.11.self_attn.o_proj.input"
CASES: Cases = {
    "residual": (
        partial(
            make,
            path="gemma-scope-2-1b-pt/resid_post_all/layer_10_width_16k_l0_small",
            model_name="gemma-3-1b-pt",
            hf_hook_point_in="model.layers.10.output",
            hf_hook_point_out="model.layers.10.output",
            l0=20,
        ),
        {
            "model": "google/gemma-3-1b-pt",
            "site": "resid_post.10",
            "target_site": None,
            "published": (("l0", 20.0),),
        },
    ),
    "attention, elsewhere": (
        partial(make, path="a", model_name="google/gemma-3-12b-pt", hf_hook_point_in=HEADS, l0=33.5),
        {"model": "google/gemma-3-12b-pt", "site": "attn_z.11", "published": (("l0", 33.5),)},
    ),
    "attention, by its path": (
        partial(make, path="gemma-scope-2-27b-it/attn_out/layer_40_width_262k_l0_medium_seed_1"),
        {"model": "google/gemma-3-27b-it", "site": "attn_z.40", "target_site": None, "published": ()},
    ),
    "transcoder": (
        partial(make, path="transcoder_all/layer_5_width_16k_l0_big", model_name="google/gemma-3-4b-it", **MLP),
        {"model": "google/gemma-3-4b-it", "site": "mlp_in.5", "target_site": "mlp_out.5"},
    ),
    "transcoder with skip": (
        partial(make, path="gemma-scope-2-270m-pt/transcoder/layer_9_width_65k_l0_small_affine", skip=True),
        {"model": "google/gemma-3-270m", "site": "mlp_in.9", "target_site": "mlp_out.9"},
    ),
    "skip, of unknown sites": (partial(make, path="c", skip=True), {"site": None, "target_site": UNKNOWN_TARGET}),
    "a module without a portable name": (
        partial(make, path="b", hf_hook_point_in="model.layers.3.self_attn.q_norm.output"),
        {"site": "model.layers.3.self_attn.q_norm.output", "target_site": None},
    ),
}
