"""Gemma Scope: residual streams in both cases of names, embeddings, and transcoders."""

from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from helpers.layout_files import Cases, D, F, Function, drawn, jump


def make(folder: Path, path: str, *, lower: bool = False) -> tuple[Path, Function]:
    here = folder / path
    here.mkdir(parents=True)
    W_enc, b_enc, W_dec, b_dec, threshold = drawn(D, F), drawn(F), drawn(F, D), drawn(D), drawn(F).abs()
    names = ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"]
    arrays = dict(zip(names, (W_enc, b_enc, W_dec, b_dec, threshold), strict=True))
    np.savez(here / "params.npz", **{n.lower() if lower else n: value.numpy() for n, value in arrays.items()})
    # Embeddings come with the factor sqrt(D), which the SAE's tensors were trained without.
    factor = D**0.5 if "embedding" in path else 1

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = jump(x / factor @ W_enc + b_enc, threshold)
        return latents, factor * (latents @ W_dec + b_dec)

    return here, function


RESIDUAL = "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
TRANSCODER = {
    "model": "google/gemma-2-2b",
    "site": "model.layers.5.pre_feedforward_layernorm.normalised",
    "target_site": "mlp_out.5",
    "sees_bos": False,
}
CASES: Cases = {
    "upper case": (
        partial(make, path=RESIDUAL),
        {
            "model": "google/gemma-2-2b",
            "site": "resid_post.20",
            "target_site": None,
            "sees_bos": False,
            "published": (("l0", 71.0),),
        },
    ),
    "lower case": (partial(make, path=RESIDUAL, lower=True), {}),
    "attention": (
        partial(make, path="gemma-scope-27b-pt-att/layer_0/width_65k/average_l0_40"),
        {"model": "google/gemma-2-27b", "site": "attn_z.0"},
    ),
    "embeddings": (
        partial(make, path="gemma-scope-9b-it-res/embedding/width_4k/average_l0_6"),
        {"model": "google/gemma-2-9b-it", "site": "resid_pre.0", "published": (("l0", 6.0),)},
    ),
    "transcoder": (
        partial(make, path="gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_90"),
        TRANSCODER,
    ),
    "a path that says nothing": (partial(make, path="downloads"), {"model": None, "site": None, "published": ()}),
}
