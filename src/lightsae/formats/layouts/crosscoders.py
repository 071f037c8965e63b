"""Crosscoders of two model-diffing projects: shared latents of a base and a fine-tuned model, or of several layers.

Axes:    S sites (models, or layers), D width of each, F latents.
Layouts: ckkissane's replication: `cfg.json` and `cc_weights.pt` (of a training: `N_cfg.json` and `N.pt`) with W_enc
         (S, D, F), b_enc, W_dec (F, S, D), b_dec (S, D): ReLU. Each model's activations were multiplied by a factor of
         its own, which no file holds.
         science-of-finetuning: `model.safetensors` and `config.json`, or `ae.pt` with {"trainer": {dict_class}} in
         `config.json`: encoder.weight (S, D, F), encoder.bias, decoder.weight (S, F, D), decoder.bias (S, D);
         activation_mean and activation_global_scale (NaN: none), by which x becomes (x - mean) scale. CrossCoder: ReLU.
         BatchTopKCrossCoder, with k and threshold: z fires where z n > threshold, n the norms of a latent's decoder
         rows as code_normalization_id says: 1 their sum over sites, 2 that of all sites' rows together, 3 a mixture, 4
         none, 5 each site for itself.
Source:  the repositories ckkissane/crosscoder-model-diff-replication and science-of-finetuning/dictionary_learning.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lightsae.errors import FormatError
from lightsae.formats.layouts.base import Layout
from lightsae.formats.layouts.description import Description
from lightsae.formats.layouts.hook_names import hub_name, site_of_hook
from lightsae.formats.layouts.portable_crosscoder import PortableCrosscoder
from lightsae.formats.layouts.source import Source, one_of_several
from lightsae.formats.layouts.tensors import Tensors, read_pickle, read_safetensors
from lightsae.sae import SiteRef

_WEIGHTS, _CFG = "cc_weights.pt", "cfg.json"
_OF_A_TRAINING = re.compile(r"\d+\.pt", re.ASCII)
_SAFETENSORS, _PICKLE, _CONFIG = "model.safetensors", "ae.pt", "config.json"
_CLASSES = ("CrossCoder", "BatchTopKCrossCoder")
_COMPILED = "_orig_mod."
_SUM, _TOGETHER, _MIXED, _NONE = 1, 2, 3, 4
# Theirs adds it to the scale by which it divides.
_EPS = 1e-8


class ModelDiffCrosscoder(Layout):
    """`cc_weights.pt` with `cfg.json`, of ckkissane's replication."""

    name: ClassVar[str] = "ckkissane"
    label: ClassVar[str] = "crosscoder-model-diff-replication"

    def problem(self, path: Path) -> str | None:
        if path.is_dir():
            return None if (path / _WEIGHTS).is_file() else f"it has no {_WEIGHTS}"
        if path.name == _WEIGHTS or (_OF_A_TRAINING.fullmatch(path.name) and _cfg_of(path).is_file()):
            return None
        return f"it is no {_WEIGHTS}"

    def read(self, path: Path) -> PortableCrosscoder:
        file = path / _WEIGHTS if path.is_dir() else path
        config = Description.read(_cfg_of(file))
        tensors, others = read_pickle(file)
        _refuse_values(others, tensors.where)
        W_enc, b_enc = tensors.take("W_enc", "S", "D", "F"), tensors.take("b_enc", "F")
        W_dec, b_dec = tensors.take("W_dec", "F", "S", "D").transpose(0, 1), tensors.take("b_dec", "S", "D")
        tensors.finish()
        name, hook, ones = config.get("model_name", str), config.get("hook_point", str), torch.ones(len(W_enc))
        model, site = name and hub_name(name), hook and site_of_hook(hook)
        return PortableCrosscoder(
            "relu",
            W_enc,
            b_enc,
            W_dec,
            b_dec,
            read=ones,
            predicted=ones,
            sites=_sites(len(W_enc), model, site),
            source=Source(self.name, model=model, site=site, context_size=config.get("seq_len", int)),
            folded=("nothing of the factor by which each model's activations were multiplied: no file holds it",),
        )


class FinetuningCrosscoder(Layout):
    """`model.safetensors` or `ae.pt` with `config.json`, of science-of-finetuning's dictionary_learning."""

    name: ClassVar[str] = "science_of_finetuning"
    label: ClassVar[str] = "science-of-finetuning's crosscoders"

    def problem(self, path: Path) -> str | None:
        file = _file_of(path)
        if file is None:
            return f"it has no {_SAFETENSORS} and no {_PICKLE}" if path.is_dir() else f"it is no {_SAFETENSORS}"
        try:
            config = _config_of(file)
        except FormatError:
            # No reason to take it: a config.json that cannot be read does not say what it is.
            return f"its {_CONFIG} says of no crosscoder"
        is_one = {"activation_dim", "dict_size", "num_layers"} <= config.values.keys()
        named = any(part.get("dict_class") in _CLASSES for part in (config.values, _trainer(config)))
        return None if is_one or named else f"its {_CONFIG} says of no crosscoder"

    def read(self, path: Path) -> PortableCrosscoder:
        file = _file_of(path)
        assert file is not None
        config = _config_of(file)
        config = Description({**_trainer(config), **config.values}, config.where)
        tensors = _tensors_of(file)
        if config.get("encoder_layers", list[int]) is not None:
            raise FormatError(f"{config.where!r}: encoder_layers leaves sites out in encoding; there is no such form.")
        W_enc, b_enc = tensors.take("encoder.weight", "S", "D", "F"), tensors.take("encoder.bias", "F")
        W_dec, b_dec = tensors.take("decoder.weight", "S", "F", "D"), tensors.take("decoder.bias", "S", "D")
        threshold = _threshold(tensors, W_dec, config)
        mean, scale = _normaliser(tensors, len(W_enc))
        tensors.finish()
        portable = PortableCrosscoder(
            "relu" if threshold is None else "jumprelu",
            W_enc,
            b_enc,
            W_dec,
            b_dec,
            read=torch.ones(len(W_enc)),
            predicted=torch.ones(len(W_enc)),
            sites=_sites(len(W_enc), None, None),
            threshold=threshold,
            source=Source(self.name),
        )
        return portable if mean is None else _with_means(portable, mean, scale)


def _cfg_of(file: Path) -> Path:
    return file.with_name(_CFG if file.name == _WEIGHTS else f"{file.stem}_{_CFG}")


def _file_of(path: Path) -> Path | None:
    """Return the file of weights; a Hub folder's before that of a training."""
    if path.is_dir():
        return next((path / name for name in (_SAFETENSORS, _PICKLE) if (path / name).is_file()), None)
    return path if path.name in (_SAFETENSORS, _PICKLE) else None


def _config_of(file: Path) -> Description:
    return Description.read_if_there(file.parent / _CONFIG)


def _trainer(config: Description) -> dict[str, object]:
    trainer = config.values.get("trainer")
    return trainer if isinstance(trainer, dict) else {}


def _tensors_of(file: Path) -> Tensors:
    if file.name == _SAFETENSORS:
        return read_safetensors(file)
    tensors, others = read_pickle(file)
    others.pop("_hub_mixin_config", None)
    _refuse_values(others, tensors.where)
    # A model that was compiled is saved with the compiler's name before each of its own.
    return Tensors({name.removeprefix(_COMPILED): tensors.pop(name) for name in tensors.names}, tensors.where)


def _refuse_values(others: dict[str, object], where: str) -> None:
    if others:
        raise FormatError(f"{where!r} holds {min(others)!r}, which a crosscoder of this layout does not have.")


def _threshold(tensors: Tensors, W_dec: Tensor, config: Description) -> Tensor | None:
    """Return each latent's threshold in units of the latent; None where all that are positive fire."""
    chosen = tensors.whole_numbers("code_normalization_id")[0] if "code_normalization_id" in tensors else _SUM
    if "threshold" not in tensors:
        return None
    tensors.drop("k")
    if tensors.shape("threshold") != ():
        raise FormatError(f"{tensors.where!r}: each site chooses its own latents (DECOUPLED); there is no such form.")
    threshold = tensors.number("threshold")
    if threshold < 0:
        raise FormatError(f"{tensors.where!r}: threshold is {threshold:g}, and so was never set; train it on.")
    total, together = W_dec.norm(dim=2).sum(0), W_dec.transpose(0, 1).flatten(1).norm(dim=1)
    if chosen == _MIXED:
        weights = [config.need(f"code_normalization_alpha_{name}", float) for name in ("cc", "sae")]
        norms = weights[0] * total + weights[1] * together
    elif chosen in (_SUM, _TOGETHER, _NONE):
        norms = {_SUM: total, _TOGETHER: together, _NONE: torch.ones_like(total)}[chosen]
    else:
        raise FormatError(f"{tensors.where!r}: code_normalization_id is {chosen}, for which there is no form.")
    thresholds: Tensor = threshold / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return thresholds


def _normaliser(tensors: Tensors, sites: int) -> tuple[Tensor | None, Tensor]:
    """Return mean (S, D) and scale (S,) by which each site was normalised; no mean where it was not."""
    ones = torch.ones(sites)
    tensors.drop("target_rms")
    if "activation_mean" not in tensors or tensors.has_nan("activation_mean"):
        tensors.drop("activation_mean", "activation_std", "activation_global_scale")
        return None, ones
    mean = tensors.take("activation_mean", "S", "D")
    tensors.drop("activation_std")
    return mean, tensors.take("activation_global_scale", "S")


def _with_means(portable: PortableCrosscoder, mean: Tensor, scale: Tensor) -> PortableCrosscoder:
    """Return the crosscoder for raw activations, where this one's is for (x - mean) scale."""
    shift = torch.einsum("sd,sdf->f", (mean * scale[:, None]).double(), portable.W_enc.double())
    predicted = scale + _EPS
    return replace(
        portable,
        b_enc=portable.b_enc - shift.float(),
        b_dec=portable.b_dec + mean * predicted[:, None],
        read=scale,
        predicted=predicted,
        folded=("the mean of each site into b_enc and b_dec; its scale stands beside the weights",),
    )


def _sites(number: int, model: str | None, site: str | None) -> tuple[SiteRef, ...]:
    """Return the sites: of two models one and the same, of a base and its chat model, else a number for each."""
    if model and site and number == 2 and model.startswith("google/gemma-"):
        # The file names the base alone; the repository's code reads its instruction-tuned sibling beside it.
        return SiteRef(model, site), SiteRef(f"{model}-it", site)
    return tuple(SiteRef(model or "", one_of_several(site, index + 1, number)) for index in range(number))
