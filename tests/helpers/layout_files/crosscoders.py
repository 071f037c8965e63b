"""Crosscoders: ckkissane's, and science-of-finetuning's with and without thresholds and means.

The functions take and give the sites' activations side by side, as a crosscoder of ours does.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.layout_files import Cases, D, F, Function, drawn

S, THRESHOLD = 2, 4.0
CFG = {"model_name": "gemma-2-2b", "hook_point": "blocks.14.hook_resid_pre", "seq_len": 1024, "dict_size": F, "d_in": D}
HUB = {"activation_dim": D, "dict_size": F, "num_layers": S, "code_normalization": "CROSSCODER"}


def ckkissane(folder: Path, *, of_a_training: bool = False, **config: object) -> tuple[Path, Function]:
    folder.mkdir(exist_ok=True)
    W_enc, b_enc, W_dec, b_dec = drawn(S, D, F), drawn(F), drawn(F, S, D), drawn(S, D)
    weights, cfg = ("3.pt", "3_cfg.json") if of_a_training else ("cc_weights.pt", "cfg.json")
    torch.save({"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}, folder / weights)
    (folder / cfg).write_text(json.dumps(CFG | config))

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = (sum(part @ W for part, W in zip(x.split(D, 1), W_enc, strict=True)) + b_enc).relu()
        return latents, torch.cat([latents @ W_dec[:, site] + b_dec[site] for site in range(S)], 1)

    return folder / weights if of_a_training else folder, function


def state(*, normalisation: int = 1, means: bool = False, batch_topk: bool = False) -> dict[str, Tensor]:
    """As science-of-finetuning's classes save it; without means NaN stands for them."""
    nan = torch.full((S, D), torch.nan)
    tensors = {"encoder.weight": drawn(S, D, F), "encoder.bias": drawn(F)}
    tensors |= {"decoder.weight": drawn(S, F, D), "decoder.bias": drawn(S, D), "target_rms": torch.tensor(1.0)}
    tensors |= {"activation_mean": drawn(S, D, seed=3) if means else nan, "activation_std": nan + 0}
    if means:
        tensors["activation_std"] = drawn(S, D, seed=4).abs() + 0.5
    scale = 1 / (tensors["activation_std"].square().sum(1) + 1e-8).sqrt() if means else torch.ones(S)
    tensors |= {"activation_global_scale": scale, "code_normalization_id": torch.tensor(normalisation)}
    counts = {"k": torch.tensor(3, dtype=torch.int), "threshold": torch.tensor(THRESHOLD)}
    return {**tensors, **counts} if batch_topk else tensors


def norms_of(W_dec: Tensor, normalisation: int) -> Tensor:
    total, together = W_dec.norm(dim=2).sum(0), W_dec.square().sum((0, 2)).sqrt()
    return {1: total, 2: together, 3: 0.1 * total + 0.5 * together, 4: torch.ones(F), 5: torch.ones(F)}[normalisation]


def function_of(tensors: dict[str, Tensor]) -> Function:
    """The latents are those of `encode`, from which both libraries decode."""
    scale = tensors.get("activation_global_scale", torch.ones(S))[None, :, None]
    mean = tensors.get("activation_mean", torch.zeros(S, D)).nan_to_num()

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        normalised = (x.view(-1, S, D) - mean) * scale
        pre = torch.einsum("tsd,sdf->tf", normalised, tensors["encoder.weight"]) + tensors["encoder.bias"]
        latents = pre.relu()
        if "threshold" in tensors:
            norms = norms_of(tensors["decoder.weight"], int(tensors.get("code_normalization_id", torch.tensor(1))))
            latents = torch.where(latents * norms > tensors["threshold"], latents, 0)
        x_hat = torch.einsum("tf,sfd->tsd", latents, tensors["decoder.weight"]) + tensors["decoder.bias"]
        return latents, (x_hat / scale + mean).flatten(1)

    return function


def write(folder: Path, tensors: dict[str, Tensor], *, pickled: bool = False, **config: object) -> Path:
    """Write a folder of the Hub, or of a training."""
    folder.mkdir(exist_ok=True)
    if pickled:
        torch.save(tensors, folder / "ae.pt")
        said: object = {"trainer": {"dict_class": "BatchTopKCrossCoder", "layer": 13, **config}}
    else:
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
        said = {**HUB, **config}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def make(
    folder: Path,
    *,
    pickled: bool = False,
    without: tuple[str, ...] = (),
    normalisation: int = 1,
    means: bool = False,
    batch_topk: bool = False,
) -> tuple[Path, Function]:
    tensors = state(normalisation=normalisation, means=means, batch_topk=batch_topk)
    tensors = {name: value for name, value in tensors.items() if name not in without}
    mixed = {"code_normalization_alpha_cc": 0.1, "code_normalization_alpha_sae": 0.5}
    return write(folder, tensors, pickled=pickled, **mixed), function_of(tensors)


def compiled(folder: Path) -> tuple[Path, Function]:
    tensors = state(batch_topk=True)
    renamed = {f"_orig_mod.{name}": value for name, value in tensors.items()}
    return write(folder, renamed, pickled=True), function_of(tensors)


def the_file_itself(folder: Path) -> tuple[Path, Function]:
    path, function = make(folder)
    return path / "model.safetensors", function


def case(**options: Any) -> tuple[Callable[[Path], tuple[Path, Function]], dict[str, object]]:
    return partial(make, **options), {"model": None, "site": None}


EARLY = ("code_normalization_id", "target_rms", "activation_mean", "activation_std", "activation_global_scale")
SAYS: dict[str, object] = {"model": "google/gemma-2-2b", "site": "resid_pre.14", "context_size": 1024}
MODEL_DIFF: Cases = {
    "of the Hub": (ckkissane, SAYS),
    "of a training": (partial(ckkissane, of_a_training=True), SAYS),
}
FINETUNING: Cases = {
    "ReLU": case(),
    "ReLU, means": case(means=True),
    "ReLU, each site its norm": case(normalisation=5),
    "ReLU, pickled": case(pickled=True),
    "BatchTopK": case(batch_topk=True),
    "BatchTopK, means": case(batch_topk=True, means=True),
    "BatchTopK, norms of all rows together": case(batch_topk=True, normalisation=2),
    "BatchTopK, a mixture of norms": case(batch_topk=True, normalisation=3),
    "BatchTopK, no norms": case(batch_topk=True, normalisation=4),
    "BatchTopK, pickled": case(batch_topk=True, pickled=True),
    "BatchTopK of an early version": case(batch_topk=True, pickled=True, without=EARLY),
    "compiled": (compiled, {"model": None}),
    "the file itself": (the_file_itself, {"model": None}),
}
