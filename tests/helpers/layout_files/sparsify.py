"""sparsify: each activation, with and without the bias in, transcoders, and the folder's name as the site."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.layout_files import Cases, D, F, Function, drawn, largest

K = 4
CONFIG = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": F, "k": K}
CONFIG |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D}
RUN = {"sae": {}, "model": "EleutherAI/pythia-70m", "dataset": "roneneldan/TinyStories", "ctx_len": 2048}


def largest_of_groups(z: Tensor, k: int) -> Tensor:
    """Of each token and each of k groups of neighbours the largest, where it is positive."""
    groups = z.view(len(z), k, -1)
    return torch.where(groups == groups.max(2, keepdim=True).values, groups, 0).view_as(z).relu()


def state() -> dict[str, Tensor]:
    return {"encoder.weight": drawn(F, D), "encoder.bias": drawn(F), "W_dec": drawn(F, D, seed=1), "b_dec": drawn(D)}


def write(folder: Path, hookpoint: str, tensors: dict[str, Tensor], run: object = None, **config: object) -> Path:
    path = folder / "run" / hookpoint
    path.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path / "sae.safetensors")
    said = {name: value for name, value in {**CONFIG, **config}.items() if value is not None}
    (path / "cfg.json").write_text(json.dumps(said))
    if run is not None:
        (path.parent / "config.json").write_text(json.dumps(run))
    return path


def case(
    hookpoint: str = "layers.3", *, run: object = RUN, **config: object
) -> Callable[[Path], tuple[Path, Function]]:
    def make(folder: Path) -> tuple[Path, Function]:
        tensors = state()
        if config.get("skip_connection"):
            tensors["W_skip"] = drawn(D, D, seed=2)
        choose = largest_of_groups if config.get("activation") == "groupmax" else largest

        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            centred = x if config.get("transcode") else x - tensors["b_dec"]
            latents = choose(centred @ tensors["encoder.weight"].T + tensors["encoder.bias"], K)
            x_hat = latents @ tensors["W_dec"] + tensors["b_dec"]
            return latents, x_hat + x @ tensors["W_skip"].T if "W_skip" in tensors else x_hat

        return write(folder, hookpoint, tensors, run, **config), function

    return make


def by_the_expansion_factor(folder: Path) -> tuple[Path, Function]:
    """The first 2 * D latents, whose number stands nowhere; as in early versions, 0 stands for it."""
    tensors = {name: value if name == "b_dec" else value[: 2 * D] for name, value in state().items()}

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = largest((x - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"], K)
        return latents, latents @ tensors["W_dec"] + tensors["b_dec"]

    return write(folder, "layers.3", tensors, RUN, num_latents=0, expansion_factor=2), function


def a_run_of_one(folder: Path) -> tuple[Path, Function]:
    path, function = case()(folder)
    return path.parent, function


def the_file_itself(folder: Path) -> tuple[Path, Function]:
    path, function = case()(folder)
    return path / "sae.safetensors", function


SAYS: dict[str, object] = {
    "model": "EleutherAI/pythia-70m",
    "site": "resid_post.3",
    "target_site": None,
    "context_size": 2048,
    "dataset": "roneneldan/TinyStories",
}
ACROSS: dict[str, object] = {"site": "mlp_in.3", "target_site": "mlp_out.3"}
CASES: Cases = {
    "topk": (case(), SAYS),
    "groupmax": (case(activation="groupmax"), SAYS),
    "no activation said": (case(activation=None, signed=False), SAYS),
    "number of latents by the expansion factor": (by_the_expansion_factor, SAYS),
    "transcoder": (case("layers.3.mlp", transcode=True), ACROSS),
    "transcoder, groupmax": (case("layers.3.mlp", transcode=True, activation="groupmax"), ACROSS),
    "skip transcoder": (case("layers.3.mlp", transcode=True, skip_connection=True), ACROSS),
    "transcoder of a block": (
        case("layers.3", transcode=True),
        {"site": "resid_pre.3", "target_site": "resid_post.3"},
    ),
    "transcoder of nobody knows what": (
        case("sae", transcode=True, run=None),
        {"model": None, "site": None, "target_site": "predicted activations"},
    ),
    "MLP of a model that is not known": (
        case("layers.3.mlp", run=None),
        {"site": "layers.3.mlp.output", "model": None},
    ),
    "MLP of GPT-2": (case("h.3.mlp", run=None), {"site": "mlp_out.3"}),
    "MLP of Gemma": (case("layers.3.mlp", run={**RUN, "model": "google/gemma-2-2b"}), {"site": "layers.3.mlp.output"}),
    "attention": (case("layers.3.attention", run=None), {"site": "attn_out.3"}),
    "embedding": (case("embed_tokens"), {"site": "embed_tokens.output"}),
    "a folder with another name": (case("best"), {"site": None, "model": "EleutherAI/pythia-70m"}),
    "a neighbour that is not the run's": (case(run={"model": [1, 2]}), {"site": "resid_post.3", "model": None}),
    "a run of one": (a_run_of_one, SAYS),
    "the file itself": (the_file_itself, SAYS),
}
