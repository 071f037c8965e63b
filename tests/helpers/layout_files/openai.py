"""OpenAI's SAEs: with the activation ReLU, and with TopK, where each token is normalised by itself."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from helpers.layout_files import Cases, D, F, Function, drawn, largest


def state(*, tied: bool = False) -> dict[str, object]:
    """As the library's own state_dict gives it, counters and all."""
    decoder = {"decoder.linear.weight": drawn(F, D)} if tied else {"decoder.weight": drawn(D, F, seed=1)}
    counters = {"stats_last_nonzero": torch.zeros(F, dtype=torch.long), "latents_activation_frequency": torch.ones(F)}
    weights = {"pre_bias": drawn(D), "latent_bias": drawn(F), "encoder.weight": drawn(F, D), **decoder}
    return {**weights, **counters, "latents_mean_square": torch.zeros(F)}


def write(folder: Path, values: dict[str, object], location: str = "resid_delta_mlp_v4", layer: int = 8) -> Path:
    path = folder / location / "autoencoders"
    path.mkdir(parents=True, exist_ok=True)
    torch.save(OrderedDict(values), path / f"{layer}.pt")
    return path / f"{layer}.pt"


def make(
    folder: Path, *, location: str = "mlp_post_act", tied: bool = False, says: bool = True
) -> tuple[Path, Function]:
    values = state(tied=tied)
    named = {"activation": "ReLU", "activation_state_dict": OrderedDict()} if says else {}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    decoder = tensors["encoder.weight"] if tied else tensors["decoder.weight"].T

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = ((x - tensors["pre_bias"]) @ tensors["encoder.weight"].T + tensors["latent_bias"]).relu()
        return latents, latents @ decoder + tensors["pre_bias"]

    return write(folder, {**values, **named}, location), function


def topk(folder: Path) -> tuple[Path, Function]:
    values = {**state(), "activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "ReLU"}}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        normalised = (x - mean) / (std + 1e-5)
        pre = (normalised - tensors["pre_bias"]) @ tensors["encoder.weight"].T + tensors["latent_bias"]
        latents = largest(pre, 4)
        return latents, (latents @ tensors["decoder.weight"].T + tensors["pre_bias"]) * std + mean

    return write(folder, values, "resid_post_mlp_v5_32k"), function


def at(location: str, site: str) -> tuple[Callable[[Path], tuple[Path, Function]], dict[str, object]]:
    return partial(make, location=location), {"model": "openai-community/gpt2", "site": site}


def the_only_layer(folder: Path) -> tuple[Path, Function]:
    path, function = make(folder)
    return path.parent, function


CASES: Cases = {
    "ReLU": at("mlp_post_act", "mlp_act.8"),
    "attention": at("resid_delta_attn_v5_32k", "attn_out.8"),
    "MLP": at("resid_delta_mlp_v5_128k", "mlp_out.8"),
    "within a block": at("resid_post_attn", "transformer.h.8.ln_2.input"),
    "after a block": at("resid_post_mlp_v5_32k", "resid_post.8"),
    "TopK": (topk, {"model": "openai-community/gpt2", "site": "resid_post.8"}),
    "a place of nobody's": (partial(make, location="mine"), {"model": None, "site": None}),
    "tied": (partial(make, tied=True), {"site": "mlp_act.8"}),
    "no activation said": (partial(make, says=False), {"site": "mlp_act.8"}),
    "the only layer": (the_only_layer, {"site": "mlp_act.8"}),
}
