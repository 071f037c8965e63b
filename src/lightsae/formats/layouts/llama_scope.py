"""Llama Scope: JumpReLU SAEs of Llama 3.1 8B, and those of its DeepSeek-R1 distillation.

Layout:  `Llama3_1-8B-Base-L{L}{R,A,M}-{8,32}x/` with hyperparams.json and checkpoints/final.safetensors: encoder.weight
         (F, D), encoder.bias, decoder.weight (O, F), decoder.bias, for activations times the scale of their data set.
         One threshold for all latents, `jump_relu_threshold`, in raw units: s times it in those of the tensors.
         R1: `{mix}/L{L}R/` with config.json and sae_weights.safetensors, the same tensors and log_jumprelu_threshold
         (F,), in the tensors' units. The scale lies in the tensor `dataset_average_activation_norm.{hook}` or, where
         the file has none, in the list of releases.
Source:  He et al. 2024, arXiv:2410.20526; lm_saes/sae.py, and SAELens 6 for the threshold's units.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import torch

from lightsae.errors import FormatError
from lightsae.formats.layouts.base import Layout
from lightsae.formats.layouts.description import Description
from lightsae.formats.layouts.hook_names import site_of_hook
from lightsae.formats.layouts.openmoss import hooks_of, refuse_other_norms, scale_of, with_choice_by_decoder_norm
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.tensors import Tensors, read_safetensors, shapes_in

_SETTINGS, _WEIGHTS = "hyperparams.json", Path("checkpoints", "final.safetensors")
_R1_SETTINGS, _R1_WEIGHTS = "config.json", "sae_weights.safetensors"
_NORM = "dataset_average_activation_norm"
_R1_FOLDER = re.compile(r"L(\d+)R")


class LlamaScope(Layout):
    """The release of Llama 3.1 8B: hyperparams.json and checkpoints/final.safetensors."""

    name: ClassVar[str] = "llama_scope"
    label: ClassVar[str] = "Llama Scope"
    weights: ClassVar[tuple[str, ...]] = (_WEIGHTS.as_posix(),)

    def problem(self, path: Path) -> str | None:
        missing = next((str(name) for name in (_SETTINGS, _WEIGHTS) if not (path / name).is_file()), None)
        return missing and f"it has no {missing}"

    def read(self, path: Path) -> PortableSAE:
        said = Description.read(path / _SETTINGS)
        refuse_other_norms(said)
        tensors = read_safetensors(path / _WEIGHTS)
        parts = _take(tensors, said)
        tensors.finish()
        read, predicted = 1.0, 1.0
        if said.get("norm_activation", str, "dataset-wise") == "dataset-wise":
            norms, d = said.part(_NORM), len(parts["W_enc"])
            read = scale_of(norms.need("in", float), d, f"{_NORM}.in", said.where)
            predicted = scale_of(norms.get("out", float, norms.need("in", float)), d, f"{_NORM}.out", said.where)
        threshold = torch.full_like(parts["b_enc"], read * said.need("jump_relu_threshold", float))
        return _sae(parts, said, threshold, _source(self.name, said, "meta-llama/Llama-3.1-8B"), read, predicted)


class LlamaScopeR1(Layout):
    """The release of DeepSeek-R1-Distill-Llama-8B: config.json and sae_weights.safetensors with encoder.weight."""

    name: ClassVar[str] = "llama_scope_r1"
    label: ClassVar[str] = "Llama Scope R1-Distill"
    weights: ClassVar[tuple[str, ...]] = (_R1_WEIGHTS,)

    def problem(self, path: Path) -> str | None:
        missing = next((name for name in (_R1_SETTINGS, _R1_WEIGHTS) if not (path / name).is_file()), None)
        if missing is not None:
            return f"it has no {missing}"
        return None if "encoder.weight" in shapes_in(path / _R1_WEIGHTS) else f"{_R1_WEIGHTS} has no encoder.weight"

    def read(self, path: Path) -> PortableSAE:
        said = Description.read(path / _R1_SETTINGS)
        refuse_other_norms(said)
        tensors = read_safetensors(path / _R1_WEIGHTS)
        parts = _take(tensors, said)
        threshold = tensors.take("log_jumprelu_threshold", "F").exp()
        read, predicted = _r1_scales(path, said, tensors, len(parts["W_enc"]))
        tensors.finish()
        source = _source(self.name, said, "deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
        return _sae(parts, said, threshold, source, read, predicted)


def _take(tensors: Tensors, said: Description) -> dict[str, Any]:
    """Take encoder and decoder, and refuse what no SAE of ours has."""
    if said.get("use_glu_encoder", bool, False):
        raise FormatError(f"{said.where!r}: use_glu_encoder is true; gated linear units are not read.")
    if (activation := said.get("act_fn", str, "jumprelu").lower()) != "jumprelu":
        raise FormatError(f"{said.where!r}: act_fn is {activation!r:.60}, where 'jumprelu' should be.")
    predicted = "D" if _target(said) is None else "O"
    W_enc, b_enc = tensors.take("encoder.weight", "F", "D").T, tensors.take("encoder.bias", "F")
    W_dec = tensors.take("decoder.weight", predicted, "F").T
    has_bias = said.get("use_decoder_bias", bool, True)
    b_dec = tensors.take("decoder.bias", predicted) if has_bias else W_dec.new_zeros(W_dec.shape[1])
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}


def _sae(
    parts: dict[str, Any], said: Description, threshold: torch.Tensor, source: Source, read: float, predicted: float
) -> PortableSAE:
    subtracts = said.get("apply_decoder_bias_to_pre_encoder", bool, False)
    if subtracts and (source.target_site or read != predicted):
        raise FormatError(f"{said.where!r}: apply_decoder_bias_to_pre_encoder is true for an SAE across two sites.")
    sae = PortableSAE("jumprelu", **parts, threshold=threshold, subtracts_b_dec=subtracts, source=source)
    # The published Llama Scope has rows of norm 1, and does not say.
    return with_choice_by_decoder_norm(sae, said, otherwise=False).with_scales(read, predicted)


def _r1_scales(path: Path, said: Description, tensors: Tensors, d: int) -> tuple[float, float]:
    """Return what activations are multiplied by, those read and those predicted."""
    if said.get("norm_activation", str, "dataset-wise") == "inference":
        # What is left of the norms is in the weights.
        tensors.drop(*(name for name in tensors.names if name.startswith(f"{_NORM}.")))
        return 1.0, 1.0
    in_file = {name: tensors.number(name) for name in tensors.names if name.startswith(f"{_NORM}.")}
    if in_file:
        hooks = hooks_of(said)
        lacking = next((hook for hook in hooks if f"{_NORM}.{hook}" not in in_file), None)
        if lacking is not None:
            raise FormatError(f"{tensors.where!r} lacks {_NORM}.{lacking}; copy it again.")
        read, predicted = (scale_of(in_file[f"{_NORM}.{hook}"], d, f"{_NORM}.{hook}", tensors.where) for hook in hooks)
        return read, predicted
    known = _known_scale(path)
    if known is None:
        raise FormatError(
            f"{tensors.where!r} is for scaled activations, and neither it nor the folder's name says the scale; keep "
            "the folders as on the Hub, such as 800M-Slimpajama-0-OpenR1-Math-220k/L5R."
        )
    return known, known


def _known_scale(path: Path) -> float | None:
    """Return the scale that the list of releases has for a folder `{mix}/L{L}R`."""
    # Here: the list is read for the SAEs alone whose files lack it.
    from lightsae.formats.releases import release

    mix, layer = path.absolute().parts[-2:]
    found = _R1_FOLDER.fullmatch(layer)
    scales = release("llama_scope_r1_distill").scales.get(mix, ())
    return scales[int(found[1])] if found and int(found[1]) < len(scales) else None


def _target(said: Description) -> str | None:
    read, predicted = hooks_of(said)
    return None if predicted == read else site_of_hook(predicted)


def _source(layout: str, said: Description, model: str) -> Source:
    return Source(
        layout,
        model=model,
        site=site_of_hook(hooks_of(said)[0]),
        target_site=_target(said),
        context_size=1024,
        dataset="cerebras/SlimPajama-627B" if layout == "llama_scope" else None,
    )
