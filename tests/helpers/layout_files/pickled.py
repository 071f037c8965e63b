"""Qwen-Scope, Goodfire and qresearch: one pickled file, whose name says what it does not."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from helpers.layout_files import Cases, D, F, Function, drawn, largest


def qwen(folder: Path, repository: str, k: int, *, name_file: bool = True, layer: int = 18) -> tuple[Path, Function]:
    here = folder / repository
    here.mkdir(parents=True)
    tensors = {"W_enc": drawn(F, D), "W_dec": drawn(D, F, seed=1), "b_enc": drawn(F), "b_dec": drawn(D)}
    torch.save(tensors, here / f"layer{layer}.sae.pt")

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = largest(x @ tensors["W_enc"].T + tensors["b_enc"], k)
        return latents, latents @ tensors["W_dec"].T + tensors["b_dec"]

    return here / f"layer{layer}.sae.pt" if name_file else here, function


def linear(folder: Path, file: str, suffix: str, *, name_file: bool = True) -> tuple[Path, Function]:
    folder.mkdir(parents=True, exist_ok=True)
    encoder, decoder = torch.nn.Linear(D, F), torch.nn.Linear(F, D)
    state = {f"encoder{suffix}.{name}": value for name, value in encoder.state_dict().items()}
    state |= {f"decoder{suffix}.{name}": value for name, value in decoder.state_dict().items()}
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(drawn(*value.shape, seed=len(name)))
    torch.save(state, folder / file)

    @torch.no_grad()
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = encoder(x).relu()
        return latents, decoder(latents)

    return folder / file if name_file else folder, function


R1 = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"
BY_LAYOUT: dict[str, Cases] = {
    "qwen_scope": {
        "a file": (
            partial(qwen, repository="SAE-Res-Qwen3-8B-Base-W64K-L0_5", k=5),
            {"model": "Qwen/Qwen3-8B-Base", "site": "resid_post.18", "published": (("l0", 5.0),)},
        ),
        "a folder": (
            partial(qwen, repository="models--Qwen--SAE-Res-Qwen3.5-27B-W80K-L0_3", k=3, name_file=False),
            {"model": "Qwen/Qwen3.5-27B", "site": "resid_post.18"},
        ),
    },
    "goodfire": {
        "8B": (
            partial(linear, file="Llama-3.1-8B-Instruct-SAE-l19.pth", suffix="_linear"),
            {"model": "meta-llama/Llama-3.1-8B-Instruct", "site": "resid_post.19", "published": (("l0", 91.0),)},
        ),
        "70B, a folder": (
            partial(linear, file="Llama-3.3-70B-Instruct-SAE-l50.pt", suffix="_linear", name_file=False),
            {"model": "meta-llama/Llama-3.3-70B-Instruct", "site": "resid_post.50"},
        ),
    },
    "deepseek_r1": {
        "8B": (
            partial(linear, file=R1, suffix=""),
            {"model": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "site": "resid_pre.19"},
        ),
        "1B": (
            partial(linear, file="Llama-3.2-1B-Instruct-SAE-l9.pt", suffix="", name_file=False),
            {"model": "meta-llama/Llama-3.2-1B-Instruct", "site": "resid_pre.9", "published": (("l0", 63.0),)},
        ),
    },
}
