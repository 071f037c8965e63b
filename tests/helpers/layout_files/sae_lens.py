"""Files as SAELens writes them, with the function that they stand for in plain formulas."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.layout_files import Cases, Function, Make, largest
from lightsae.formats.layouts.source import UNKNOWN_TARGET

TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = ("standard", "topk", "abstopk", "jumprelu", "gated", "matching_pursuit", *TRANSCODERS)
METADATA = {
    "sae_lens_version": "6.54.12",
    "model_name": "gpt2-small",
    "hook_name": "blocks.7.hook_resid_pre",
    "hook_head_index": None,
    "context_size": 128,
    "prepend_bos": True,
    "dataset_path": "Skylion007/openwebtext",
}


def write_sae_lens(
    folder: Path,
    architecture: str,
    *,
    d_in: int = 6,
    d_sae: int = 16,
    d_out: int = 9,
    k: int = 4,
    subtracts: bool = True,
    rescales: bool = False,
    normalises: str = "none",
    seed: int = 0,
    config: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
) -> Function:
    """Write cfg.json and sae_weights.safetensors; return the function (latents, prediction) of raw activations.

    The latents of `abstopk` are the function's as lightsae has them: both sides of each, twice as many.

    Args:
        folder: Made where it is missing.
        architecture: One of `ARCHITECTURES`.
        d_in: Width read.
        d_sae: Latents.
        d_out: Width predicted, of transcoders.
        k: Of topk and abstopk.
        subtracts: apply_b_dec_to_input, which transcoders do not have.
        rescales: rescale_acts_by_decoder_norm, of topk and abstopk.
        normalises: normalize_activations: none, layer_norm or constant_norm_rescale.
        seed: Of the tensors.
        config: More of cfg.json, in place of what would stand there; None leaves a key out.
        metadata: The same for what stands below `metadata`.
        tensors: The same for tensors.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    transcoder = architecture in TRANSCODERS
    subtracts, width = subtracts and not transcoder, d_out if transcoder else d_in
    W_enc, b_enc, W_dec, b_dec = drawn(d_in, d_sae), drawn(d_sae), drawn(d_sae, width), drawn(width)
    threshold, r_mag, b_mag, W_skip = drawn(d_sae).abs(), drawn(d_sae), drawn(d_sae), drawn(width, d_in)
    written = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if "jumprelu" in architecture:
        written["threshold"] = threshold
    if "skip" in architecture:
        written["W_skip"] = W_skip
    if architecture == "gated":
        written = {name: value for name, value in written.items() if name != "b_enc"}
        written |= {"b_gate": b_enc, "r_mag": r_mag, "b_mag": b_mag}
    if architecture == "matching_pursuit":
        W_dec = torch.nn.functional.normalize(W_dec) * (0.6 + 0.6 * b_enc.sigmoid()[:, None])
        written = {"W_dec": W_dec, "b_dec": b_dec}
    values: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": subtracts,
        "normalize_activations": normalises,
        "reshape_activations": "none",
        "metadata": METADATA | (metadata or {}),
    }
    if transcoder:
        values["d_out"] = d_out
    if "topk" in architecture:
        values |= {"k": k, "rescale_acts_by_decoder_norm": rescales}
    if architecture == "matching_pursuit":
        values |= {"residual_threshold": 0.5, "max_iterations": None, "stop_on_duplicate_support": True}
    values = {name: value for name, value in (values | (config or {})).items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(values))
    save_file(written | (tensors or {}), folder / "sae_weights.safetensors")

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        shift, unit = torch.zeros(len(x), 1), torch.ones(len(x), 1)
        given = x
        if normalises == "layer_norm":
            shift, unit = x.mean(1, keepdim=True), x.std(1, keepdim=True)
            given = (x - shift) / (unit + 1e-5)
        if normalises == "constant_norm_rescale":
            unit = x.norm(dim=1, keepdim=True) / d_in**0.5
            given = x / unit
        u = given - b_dec if subtracts else given
        z = u @ W_enc + b_enc
        norms = W_dec.norm(dim=1) if rescales and "topk" in architecture else torch.ones(d_sae)
        if architecture == "topk":
            latents = largest(z * norms, k)
        elif architecture == "abstopk":
            chosen = (z * norms).abs().topk(k, dim=-1).indices
            latents = torch.zeros_like(z).scatter(-1, chosen, (z * norms).gather(-1, chosen))
        elif "jumprelu" in architecture:
            latents = z.relu() * (z > threshold)
        elif architecture == "matching_pursuit":
            latents = torch.stack([_searched(token, W_dec) for token in u])
        elif architecture == "gated":
            latents = (z > 0) * (u @ (W_enc * r_mag.exp()) + b_mag).relu()
        else:
            latents = z.relu()
        added = torch.zeros_like(b_dec) if architecture == "matching_pursuit" and not subtracts else b_dec
        x_hat = ((latents / norms) @ W_dec + added) * unit + shift
        if "skip" in architecture:
            x_hat = x_hat + x @ W_skip.T
        if architecture == "abstopk":
            latents = torch.cat([latents.relu(), (-latents).relu()], -1)
        return latents, x_hat

    return function


def _searched(left: Tensor, W_dec: Tensor) -> Tensor:
    """One token's latents: each of what those before leave, until 0.5 is left, or one comes again, or D were taken."""
    latents = torch.zeros(len(W_dec))
    for _ in range(len(left)):
        best = int((W_dec @ left).argmax())
        value, repeated = (W_dec[best] @ left).relu(), bool(latents[best] != 0)
        latents[best] += value
        left = left - value * W_dec[best]
        if value == 0 or repeated or left.norm() < 0.5:
            break
    return latents


def in_old_terms(folder: Path, **changed: Any) -> None:
    """Rewrite cfg.json as before version 6: no version, metadata beside the rest, older names."""
    values = json.loads((folder / "cfg.json").read_bytes())
    flat = values | values.pop("metadata")
    names = {
        "hook_name": "hook_point",
        "hook_head_index": "hook_point_head_index",
        "activation_fn": "activation_fn_str",
    }
    old = {names.get(name, name): value for name, value in (flat | changed).items() if value is not None}
    old.pop("sae_lens_version")
    (folder / "cfg.json").write_text(json.dumps(old))


def _sae(architecture: str, **options: Any) -> Make:
    return lambda folder: (folder / "sae", write_sae_lens(folder / "sae", architecture, **options))


def _before_version_6(folder: Path) -> tuple[Path, Function]:
    function = write_sae_lens(folder / "sae", "standard")
    in_old_terms(folder / "sae", architecture=None, normalize_activations=False)
    return folder / "sae", function


_SAYS = {"model": "openai-community/gpt2", "site": "resid_pre.7", "sees_bos": True, "context_size": 128}
_ACROSS = {"hook_name": "blocks.7.mlp.hook_in", "hook_name_out": "blocks.7.hook_mlp_out"}
CASES: Cases = {
    **{name: (_sae(name), _SAYS) for name in ARCHITECTURES if name not in TRANSCODERS},
    **{name: (_sae(name, metadata=_ACROSS), {"site": "mlp_in.7", "target_site": "mlp_out.7"}) for name in TRANSCODERS},
    "a transcoder of one width": (
        _sae("transcoder", d_out=6),
        {"site": "resid_pre.7", "target_site": UNKNOWN_TARGET},
    ),
    "topk rescaled": (_sae("topk", rescales=True), {}),
    "abstopk rescaled": (_sae("abstopk", rescales=True), {}),
    "not centred": (_sae("gated", subtracts=False), {}),
    "tokens normalised": (_sae("topk", normalises="layer_norm"), {}),
    "before version 6": (_before_version_6, _SAYS),
}
