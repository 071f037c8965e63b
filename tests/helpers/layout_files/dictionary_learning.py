"""dictionary_learning: one case for each class, with and without config.json, and of the early versions."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from helpers.layout_files import Cases, D, F, Function, drawn, jump, largest

K, THRESHOLD = 3, 1.5
GROUPS = [2, 4, 10]
SAYS: dict[str, object] = {
    "model": "google/gemma-2-2b",
    "site": "resid_post.12",
    "context_size": 128,
    "sees_bos": None,
    "target_site": None,
}
Parts = tuple[dict[str, Tensor], Function]


def write(folder: Path, kind: str | None, state: dict[str, Tensor], **trainer: object) -> Path:
    """Write ae.pt as the library does, and config.json, where a class is given to name in it."""
    path = folder / "run" / "trainer_0"
    path.mkdir(parents=True)
    torch.save(state, path / "ae.pt")
    if kind is not None:
        said = {
            "dict_class": kind,
            "layer": 12,
            "lm_name": "google/gemma-2-2b",
            "submodule_name": "resid_post_layer_12",
        }
        config = {"trainer": {**said, "k": K, "lr": None, **trainer}, "buffer": {"io": "out", "ctx_len": 128}}
        (path / "config.json").write_text(json.dumps(config))
    return path


def linear() -> dict[str, Tensor]:
    return {"encoder.weight": drawn(F, D), "encoder.bias": drawn(F), "decoder.weight": drawn(D, F, seed=1)}


def auto_encoder() -> Parts:
    state = {**linear(), "bias": drawn(D)}

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = ((x - state["bias"]) @ state["encoder.weight"].T + state["encoder.bias"]).relu()
        return latents, latents @ state["decoder.weight"].T + state["bias"]

    return state, function


def auto_encoder_new() -> Parts:
    state = {**linear(), "decoder.bias": drawn(D)}

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = (x @ state["encoder.weight"].T + state["encoder.bias"]).relu()
        return latents, latents @ state["decoder.weight"].T + state["decoder.bias"]

    return state, function


def gated() -> Parts:
    state = {"encoder.weight": drawn(F, D), "decoder.weight": drawn(D, F, seed=1), "decoder_bias": drawn(D)}
    state |= {"r_mag": drawn(F, seed=2) / 4, "gate_bias": drawn(F, seed=3), "mag_bias": drawn(F, seed=4)}

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = (x - state["decoder_bias"]) @ state["encoder.weight"].T
        magnitude = (state["r_mag"].exp() * pre + state["mag_bias"]).relu()
        latents = torch.where(pre + state["gate_bias"] > 0, magnitude, 0)
        return latents, latents @ state["decoder.weight"].T + state["decoder_bias"]

    return state, function


def plain() -> dict[str, Tensor]:
    return {"W_enc": drawn(D, F), "b_enc": drawn(F), "W_dec": drawn(F, D, seed=1), "b_dec": drawn(D)}


def jump_relu(*, subtracts: bool = False) -> Parts:
    state = {**plain(), "threshold": drawn(F, seed=5).abs()}

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = (x - subtracts * state["b_dec"]) @ state["W_enc"] + state["b_enc"]
        latents = jump(pre, state["threshold"])
        return latents, latents @ state["W_dec"] + state["b_dec"]

    return state, function


def topk(*, kept: tuple[str, ...] = ("k", "threshold"), threshold: float = THRESHOLD) -> Parts:
    counts = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold)}
    state = {**linear(), "b_dec": drawn(D), **{name: counts[name] for name in kept}}

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = largest((x - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"], K)
        return latents, latents @ state["decoder.weight"].T + state["b_dec"]

    return state, function


def batch_topk() -> Parts:
    state, _ = topk()

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = jump((x - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"], THRESHOLD)
        return latents, latents @ state["decoder.weight"].T + state["b_dec"]

    return state, function


def matryoshka(*, threshold: float = THRESHOLD) -> Parts:
    state = {**plain(), "k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold)}
    state["group_sizes"] = torch.tensor(GROUPS)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = (x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]
        latents = largest(pre, K) if threshold < 0 else jump(pre, threshold)
        return latents, latents @ state["W_dec"] + state["b_dec"]

    return state, function


def case(
    parts: Callable[[], Parts], kind: str | None = None, **trainer: object
) -> Callable[[Path], tuple[Path, Function]]:
    def make(folder: Path) -> tuple[Path, Function]:
        state, function = parts()
        return write(folder, kind, state, **trainer), function

    return make


def in_bfloat16(folder: Path) -> tuple[Path, Function]:
    """As files of large SAEs are; rounded before the formula is applied, so that both have the same numbers."""
    state, _ = auto_encoder_new()
    rounded = {name: value.bfloat16() for name, value in state.items()}

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        exact = {name: value.float() for name, value in rounded.items()}
        latents = (x @ exact["encoder.weight"].T + exact["encoder.bias"]).relu()
        return latents, latents @ exact["decoder.weight"].T + exact["decoder.bias"]

    return write(folder, "AutoEncoderNew", rounded), function


def the_file_of_a_step(folder: Path) -> tuple[Path, Function]:
    state, function = topk()
    below = write(folder, "AutoEncoderTopK", state) / "checkpoints"
    below.mkdir()
    (below.parent / "ae.pt").rename(below / "ae_500.pt")
    return below / "ae_500.pt", function


def a_run_of_one(folder: Path) -> tuple[Path, Function]:
    path, function = case(gated, "GatedAutoEncoder")(folder)
    return path.parent, function


NO_SOURCE: dict[str, object] = {"model": None, "site": None, "context_size": None}
CASES: Cases = {
    "AutoEncoder": (case(auto_encoder, "AutoEncoder"), SAYS),
    "AutoEncoderNew": (case(auto_encoder_new, "AutoEncoderNew"), SAYS),
    "AutoEncoderNew that its trainer calls AutoEncoder": (case(auto_encoder_new, "AutoEncoder"), SAYS),
    "GatedAutoEncoder": (case(gated, "GatedAutoEncoder"), SAYS),
    "JumpReluAutoEncoder": (case(jump_relu, "JumpReluAutoEncoder"), SAYS),
    "JumpReluAutoEncoder, b_dec in": (
        case(partial(jump_relu, subtracts=True), "JumpReluAutoEncoder", apply_b_dec_to_input=True),
        SAYS,
    ),
    "AutoEncoderTopK": (case(topk, "AutoEncoderTopK"), SAYS),
    "AutoEncoderTopK, k in config.json": (case(partial(topk, kept=()), "AutoEncoderTopK"), SAYS),
    "BatchTopKSAE": (case(batch_topk, "BatchTopKSAE"), SAYS),
    "BatchTopKSAE, no threshold yet": (case(partial(topk, threshold=-1.0), "BatchTopKSAE"), SAYS),
    "MatryoshkaBatchTopKSAE": (case(matryoshka, "MatryoshkaBatchTopKSAE"), SAYS),
    "MatryoshkaBatchTopKSAE, no threshold yet": (
        case(partial(matryoshka, threshold=-1.0), "MatryoshkaBatchTopKSAE"),
        SAYS,
    ),
    "AutoEncoder alone": (case(auto_encoder), NO_SOURCE),
    "AutoEncoderNew alone": (case(auto_encoder_new), NO_SOURCE),
    "GatedAutoEncoder alone": (case(gated), NO_SOURCE),
    "JumpReluAutoEncoder alone": (case(jump_relu), NO_SOURCE),
    "AutoEncoderTopK of an early version alone": (case(partial(topk, kept=("k",))), NO_SOURCE),
    "TopK or BatchTopK without a threshold": (case(partial(topk, threshold=-1.0)), NO_SOURCE),
    "MatryoshkaBatchTopKSAE alone": (case(matryoshka), NO_SOURCE),
    "in bfloat16": (in_bfloat16, SAYS),
    "the file of a step": (the_file_of_a_step, SAYS),
    "a run of one": (a_run_of_one, SAYS),
    "layer beside the name": (
        case(gated, "GatedAutoEncoder", submodule_name="mlp_out", layer=3),
        {"site": "mlp_out.3"},
    ),
    "another way to number": (
        case(gated, "GatedAutoEncoder", submodule_name="resid_out_layer3"),
        {"site": "resid_post.3"},
    ),
    "a module": (
        case(gated, "GatedAutoEncoder", submodule_name="gpt_neox.layers.3.mlp"),
        {"site": "gpt_neox.layers.3.mlp.output"},
    ),
    "a name of nobody's": (case(gated, "GatedAutoEncoder", submodule_name="residual"), {"site": None}),
}
