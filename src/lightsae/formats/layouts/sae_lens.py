"""SAELens: cfg.json beside sae_weights.safetensors, read and written; transcoders too.

Layout:  W_enc (D, F), b_enc, W_dec (F, O), b_dec; threshold of jumprelu; b_gate, b_mag and r_mag of gated, which has no
         b_enc; W_skip (O, D) of skip transcoders; of matching_pursuit W_dec and b_dec alone. All are for raw
         activations, except where cfg.json says otherwise.
Source:  SAELens 6.54.12. AbsTopK: arXiv:2510.00404.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightsae.errors import FormatError
from lightsae.formats.files import read_json, shown
from lightsae.formats.layouts.base import WritableLayout
from lightsae.formats.layouts.hook_names import hook_of_site, module_of_site, short_name
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.sae_lens_config import (
    BATCH_TOPK,
    CONFIG,
    TRANSCODERS,
    SAELensConfig,
    read_config,
    split_head,
)
from lightsae.formats.layouts.source import UNKNOWN_TARGET, Source
from lightsae.formats.layouts.tensors import Tensors, read_safetensors
from lightsae.formats.tensor_files import save_tensors
from lightsae.sae.token_norm import TokenNorm
from lightsae.version import version

_WEIGHTS = "sae_weights.safetensors"
_SCALER = "activation_scaler.json"
_TOKEN_NORMS: dict[str, TokenNorm] = {"layer_norm": "layer_norm", "constant_norm_rescale": "rescale"}
# Whose cfg.json is written; an older one would be read by the rules of before version 6.
_FORMAT = "6.54.12"


class SAELens(WritableLayout):
    """SAEs and transcoders of SAELens, whatever version wrote them."""

    name: ClassVar[str] = "sae_lens"
    label: ClassVar[str] = "SAELens"

    def problem(self, path: Path) -> str | None:
        folder = _folder_of(path)
        return next((f"it has no {name}" for name in (CONFIG, _WEIGHTS) if not (folder / name).is_file()), None)

    def read(self, path: Path) -> PortableSAE:
        folder = _folder_of(path)
        config = read_config(folder)
        token_norm = _token_norm(config, shown(folder / CONFIG))
        tensors = read_safetensors(folder / _WEIGHTS)
        tensors.sizes.update(config.sizes)
        sae = replace(_taken(tensors, config), token_norm=token_norm)
        if config.normalisation == "expected_average_only_in":
            sae = _scaled(sae, _scale_in(folder), config.rescales)
        sae = _rescaled(sae) if config.rescales else sae
        sae = _finetuned(sae, tensors, config)
        tensors.finish()
        return _signed(sae) if config.architecture == "abstopk" else sae

    def write(self, sae: PortableSAE, folder: Path) -> None:
        tensors, config = tensors_of(sae), config_of(sae)
        save_tensors(tensors, folder / _WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config, indent=2))


def _folder_of(path: Path) -> Path:
    return path.parent if path.name in (CONFIG, _WEIGHTS) else path


def _token_norm(config: SAELensConfig, where: str) -> TokenNorm | None:
    """Return how each token is normalised by itself; refuse what is neither that nor in the weights."""
    what = f"{where!r}: normalize_activations is {config.normalisation}"
    if config.normalisation == "covariance_whitening":
        raise FormatError(f"{what}, which the weights do not hold; save the SAE by SAELens' save_inference_model.")
    norm = _TOKEN_NORMS.get(config.normalisation)
    if norm is not None and config.architecture in TRANSCODERS:
        raise FormatError(
            f"{what}, of a {config.architecture}; a Transcoder of lightsae normalises no token by itself."
        )
    return norm


def _taken(tensors: Tensors, config: SAELensConfig) -> PortableSAE:
    """Return the SAE of the tensors as they stand in the file."""
    transcoder, architecture = config.architecture in TRANSCODERS, config.architecture
    if config.pursuit is not None:
        return _of_pursuit(tensors, config)
    out = "O" if transcoder else "D"
    W_enc, W_dec, b_dec = tensors.take("W_enc", "D", "F"), tensors.take("W_dec", "F", out), tensors.take("b_dec", out)
    b_enc = tensors.take("b_gate" if architecture == "gated" else "b_enc", "F")
    parts: dict[str, Any] = {"activation": "relu"}
    if architecture == "gated":
        parts = {"activation": "gated", "b_mag": tensors.take("b_mag", "F"), "r_mag": tensors.take("r_mag", "F")}
    elif "jumprelu" in architecture:
        parts = {"activation": "jumprelu", "threshold": _threshold(tensors)}
    elif architecture in BATCH_TOPK:
        threshold = torch.full(b_enc.shape, tensors.number("topk_threshold"))
        parts = {"activation": "jumprelu", "threshold": threshold}
    elif architecture in ("topk", "abstopk"):
        parts = {"activation": "topk"}
    return PortableSAE(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        subtracts_b_dec=config.subtracts_b_dec,
        k=config.k,
        W_skip=tensors.take("W_skip", "O", "D").T if "skip" in architecture else None,
        source=config.source,
        **parts,
    )


def _of_pursuit(tensors: Tensors, config: SAELensConfig) -> PortableSAE:
    """Return a matching pursuit, whose W_enc no file holds."""
    W_dec, b_dec = tensors.take("W_dec", "F", "D"), tensors.take("b_dec", "D")
    # SAELens adds b_dec to the prediction where it subtracts it from the input, and nowhere else.
    unused = not config.subtracts_b_dec and bool(b_dec.any())
    return PortableSAE(
        "matching_pursuit",
        W_enc=W_dec.T,
        b_enc=torch.zeros(len(W_dec)),
        W_dec=W_dec,
        b_dec=b_dec if config.subtracts_b_dec else torch.zeros_like(b_dec),
        subtracts_b_dec=True,
        pursuit=config.pursuit,
        source=config.source,
        folded=("no b_dec, since apply_b_dec_to_input is false",) if unused else (),
    )


def _threshold(tensors: Tensors) -> Tensor:
    """Return the thresholds, whose logarithms older training runs hold."""
    return tensors.take("log_threshold", "F").exp() if "log_threshold" in tensors else tensors.take("threshold", "F")


def _scale_in(folder: Path) -> float | None:
    """Return the scale of the inputs in training, which a training run keeps beside the weights; None if it is lost."""
    if not (folder / _SCALER).is_file():
        return None
    scale = read_json(folder, _SCALER, "", "download it again").get("scaling_factor", 1)
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not scale > 0:
        raise FormatError(f"{shown(folder / _SCALER)!r}: scaling_factor is {scale!r:.60}; it is a number above 0.")
    return float(scale)


def _scaled(sae: PortableSAE, scale: float | None, rescales: bool) -> PortableSAE:
    """Fold the scale of the inputs in training; where it is lost, say so."""
    if scale is None:
        note = (
            "no scale, though the SAE was trained on scaled activations (expected_average_only_in): the file does not "
            "hold it, and SAELens' load_from_disk takes the weights as they are, too"
        )
        return replace(sae, folded=(*sae.folded, note))
    sae = sae.with_scales(scale, scale)
    # It stands beside z times the norm of a row of W_dec, which was divided just now.
    return replace(sae, threshold=sae.threshold / scale) if rescales and sae.threshold is not None else sae


def _rescaled(sae: PortableSAE) -> PortableSAE:
    """Multiply the latents by the norms of the decoder's rows before the choice among them, which thresholds expect."""
    norms = sae.W_dec.norm(dim=1)
    silent = norms == 0
    # Rows of zeros: z * norm is 0 there, and never chosen before what is positive.
    still = replace(sae, W_enc=sae.W_enc.masked_fill(silent, 0), b_enc=sae.b_enc.masked_fill(silent, 0))
    rescaled = still.with_latents_times(norms.masked_fill(silent, 1), "norms of the decoder's rows into the encoder")
    return replace(rescaled, threshold=sae.threshold)


def _finetuned(sae: PortableSAE, tensors: Tensors, config: SAELensConfig) -> PortableSAE:
    """Work the factor of each latent in decoding, which finetuning left, into the decoder."""
    name = next((name for name in ("scaling_factor", "finetuning_scaling_factor") if name in tensors), None)
    if name is None or sae.pursuit is not None:
        return sae
    factor = tensors.take(name, "F")
    if torch.allclose(factor, torch.ones_like(factor)):
        return sae
    if not config.finetuned:
        raise FormatError(f"{tensors.where!r}: {name} is not 1, and {CONFIG} does not say finetuning_scaling_factor.")
    folded = (*sae.folded, f"{name} into W_dec")
    return replace(sae, W_dec=sae.W_dec * factor[:, None], folded=folded)


def _signed(sae: PortableSAE) -> PortableSAE:
    """Return AbsTopK, whose latents have a sign, as TopK over z and -z: the same choice, and no latent below 0."""
    return replace(
        sae,
        W_enc=torch.cat([sae.W_enc, -sae.W_enc], 1),
        b_enc=torch.cat([sae.b_enc, -sae.b_enc]),
        W_dec=torch.cat([sae.W_dec, -sae.W_dec]),
        folded=(*sae.folded, f"signs into twice the latents: latent i + {sae.d_sae} is the negative side of latent i"),
    )


def tensors_of(sae: PortableSAE) -> dict[str, Tensor]:
    """Return the tensors of an SAE by SAELens' names, float32."""
    if sae.pursuit is not None:
        return {"W_dec": sae.W_dec.float(), "b_dec": sae.b_dec.float()}
    gated = sae.activation == "gated"
    named = {
        "W_enc": sae.W_enc,
        "b_gate" if gated else "b_enc": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
        "threshold": sae.threshold,
        "b_mag": sae.b_mag,
        "r_mag": sae.r_mag,
        "W_skip": None if sae.W_skip is None else sae.W_skip.T,
    }
    return {name: value.float() for name, value in named.items() if value is not None}


def config_of(sae: PortableSAE) -> dict[str, Any]:
    """Return cfg.json of an SAE.

    Raises:
        FormatError: SAELens has no such architecture.
    """
    d_in, d_out = sae.W_enc.shape[0], sae.W_dec.shape[1]
    widths = sae.source.widths(d_in, d_out)
    architecture = _architecture_of(sae, widths.read != widths.predicted)
    transcoder = architecture in TRANSCODERS
    hooks_z = not transcoder and (sae.source.site or "").startswith("attn_z.")
    return {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": sae.d_sae,
        **({"d_out": d_out} if transcoder else {}),
        **({"k": sae.k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}),
        **({} if sae.pursuit is None else asdict(sae.pursuit)),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtracts_b_dec,
        "normalize_activations": next((name for name, kind in _TOKEN_NORMS.items() if kind == sae.token_norm), "none"),
        "reshape_activations": "hook_z" if hooks_z else "none",
        "metadata": _metadata_of(sae, transcoder),
    }


def _architecture_of(sae: PortableSAE, transcoder: bool) -> str:
    if not transcoder:
        if sae.activation not in ("relu", "topk", "jumprelu", "gated", "matching_pursuit"):
            raise FormatError(f"SAELens has no SAE with {sae.activation}.")
        return "standard" if sae.activation == "relu" else sae.activation
    if sae.activation not in ("relu", "jumprelu"):
        raise FormatError(f"SAELens has no transcoder with {sae.activation}; its transcoders have relu or jumprelu.")
    begin = "jumprelu_" if sae.activation == "jumprelu" else ""
    return f"{begin}{'' if sae.W_skip is None else 'skip_'}transcoder"


def _metadata_of(sae: PortableSAE, transcoder: bool) -> dict[str, Any]:
    source = sae.source
    in_batches = sae.activation == "jumprelu" and sae.k is not None
    read, predicted = _hook_entries(source.site, source.model), _hook_entries(source.target_site, source.model)
    of_module = read["hook_name"] is not None and "hook_" not in read["hook_name"]
    return {
        "sae_lens_version": _FORMAT,
        "sae_lens_training_version": None,
        "creator": f"lightsae {version()}",
        "model_name": None if source.model is None else short_name(source.model),
        "model_class_name": "AutoModelForCausalLM" if of_module else "HookedTransformer",
        # Activations are those of the model as it was published.
        "model_from_pretrained_kwargs": {} if of_module else {"center_writing_weights": False},
        **read,
        **({f"{name}_out": value for name, value in predicted.items()} if transcoder else {}),
        "context_size": source.context_size,
        "dataset_path": source.dataset,
        **_first_token(source),
        **({"training_architecture": "batchtopk", "training_architecture_details": {"k": sae.k}} if in_batches else {}),
    }


def _hook_entries(site: str | None, model: str | None) -> dict[str, Any]:
    """Return `hook_name`, `hf_hook_name` and `hook_head_index` of a site."""
    if site is None or site == UNKNOWN_TARGET:
        return {"hook_name": None, "hf_hook_name": None, "hook_head_index": None}
    hook, head = split_head(site)
    module = module_of_site(hook, model)
    if hook_of_site(hook) is None and module is not None and module.endswith(".output"):
        # SAELens' hooks on modules are on what they return.
        return {"hook_name": module.removesuffix(".output"), "hf_hook_name": module, "hook_head_index": head}
    return {"hook_name": hook_of_site(hook), "hf_hook_name": module, "hook_head_index": head}


def _first_token(source: Source) -> dict[str, Any]:
    """Say whether the first token of a row was trained on: it is BOS, and left out by its position where it was not."""
    if source.sees_bos is None:
        return {"prepend_bos": None}
    return {"prepend_bos": True, "seqpos_slice": [None] if source.sees_bos else [1, None]}
