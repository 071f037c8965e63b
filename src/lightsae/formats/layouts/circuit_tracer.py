"""circuit-tracer: sets of transcoders, one a layer, of which each file is one transcoder of ours.

Layout:  `layer_L.safetensors` beside `config.yaml` (model_kind transcoder_set, model_name, feature_input_hook,
         feature_output_hook): W_enc (F, D), W_dec (F, D), b_enc, b_dec, with `activation_function.threshold` (F,)
         JumpReLU, else ReLU; W_skip (D, D) is applied as x W_skip^T. `b_dec` is not subtracted.
Axes:    D width read and predicted, F latents.
Source:  circuit_tracer/transcoder/single_layer_transcoder.py and utils/hf_utils.py of circuit-tracer 0.5.0.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from lightsae.errors import FormatError
from lightsae.formats.files import shown
from lightsae.formats.layouts.base import WritableLayout
from lightsae.formats.layouts.hook_names import hook_of_site, site_of_hook
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.tensors import read_safetensors
from lightsae.formats.tensor_files import save_tensors
from lightsae.parsing import read_yaml

_CONFIG, _SET, _CROSS_LAYER = "config.yaml", "transcoder_set", "cross_layer_transcoder"
_LAYER = re.compile(r"layer_(\d+)\.safetensors")
_OF_CROSS_LAYER = re.compile(r"W_(enc|dec)_\d+\.safetensors")
_THRESHOLD = "activation_function.threshold"
# What of config.yaml all layers of a set share.
_SHARED = ("model_kind", "model_name", "feature_input_hook", "feature_output_hook")


class CircuitTracer(WritableLayout):
    """A transcoder of a set, by its file; its folder, where it holds one layer alone."""

    name: ClassVar[str] = "circuit_tracer"
    label: ClassVar[str] = "circuit-tracer"
    shares_folder: ClassVar[bool] = True

    def problem(self, path: Path) -> str | None:
        is_layer = bool(_LAYER.fullmatch(path.name) or _OF_CROSS_LAYER.fullmatch(path.name))
        if path.is_file() and not is_layer:
            return "its name is not layer_L.safetensors"
        config = (path if path.is_dir() else path.parent) / _CONFIG
        if not config.is_file():
            return f"it has no {_CONFIG}" if path.is_dir() else f"there is no {_CONFIG} beside it"
        try:
            kind = _config(config).get("model_kind")
        except FormatError:
            return f"its {_CONFIG} cannot be read"
        return None if kind in (_SET, _CROSS_LAYER) else f"its {_CONFIG} says no model_kind of circuit-tracer's"

    def read(self, path: Path) -> PortableSAE:
        file = _file_of(path)
        config = _config(file.parent / _CONFIG)
        if config["model_kind"] == _CROSS_LAYER or _OF_CROSS_LAYER.fullmatch(file.name):
            raise FormatError(
                f"{shown(path)!r} is of a cross-layer transcoder, whose latents write to all layers above theirs; "
                "lightsae has no such SAE. A transcoder set of circuit-tracer's opens, a layer at a time."
            )
        tensors = read_safetensors(file)
        W_enc, b_enc = tensors.take("W_enc", "F", "D").T, tensors.take("b_enc", "F")
        W_dec, b_dec = tensors.take("W_dec", "F", "D"), tensors.take("b_dec", "D")
        W_skip = tensors.take("W_skip", "D", "D").T if "W_skip" in tensors else None
        threshold = tensors.take(_THRESHOLD, "F") if _THRESHOLD in tensors else None
        tensors.finish()
        if threshold is not None and bool((threshold < 0).any()):
            raise FormatError(
                f"{shown(file)!r}: a threshold is below 0, with which latents would be negative; no SAE here has those."
            )
        return PortableSAE(
            "relu" if threshold is None else "jumprelu",
            W_enc,
            b_enc,
            W_dec,
            b_dec,
            threshold=threshold,
            W_skip=W_skip,
            source=_source(config, file),
        )

    def written(self, sae: PortableSAE, folder: Path) -> Path:
        return folder / f"layer_{_layer_of(sae)}.safetensors"

    def write(self, sae: PortableSAE, folder: Path) -> None:
        config, file = _config_of(sae), self.written(sae, folder)
        if (folder / _CONFIG).is_file():
            _check_same_set(_config(folder / _CONFIG), config, folder)
        tensors = {"W_enc": sae.W_enc.T, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
        if sae.threshold is not None:
            tensors[_THRESHOLD] = sae.threshold
        if sae.W_skip is not None:
            tensors["W_skip"] = sae.W_skip.T
        save_tensors(tensors, file)
        if not (folder / _CONFIG).is_file():
            (folder / _CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def _file_of(path: Path) -> Path:
    """Return the file that a path means.

    Raises:
        FormatError: The folder holds several layers, or none.
    """
    if not path.is_dir():
        return path
    if any(_OF_CROSS_LAYER.fullmatch(file.name) for file in path.iterdir()):
        return path / "W_enc_0.safetensors"
    layers = sorted(int(found[1]) for file in path.iterdir() if (found := _LAYER.fullmatch(file.name)))
    if not layers:
        raise FormatError(
            f"{shown(path)!r} has the {_CONFIG} of a set of circuit-tracer's and no layer_L.safetensors; fetch those."
        )
    if len(layers) > 1:
        held = f"{layers[0]} to {layers[-1]}" if len(layers) == layers[-1] - layers[0] + 1 else str(layers)[1:-1]
        raise FormatError(
            f"{shown(path)!r} is a set of {len(layers)} transcoders, of layers {held}; name the file of one, such as "
            f"{shown(path / f'layer_{layers[0]}.safetensors')!r}."
        )
    return path / f"layer_{layers[0]}.safetensors"


def _config(path: Path) -> Mapping[str, Any]:
    where = shown(path)
    try:
        config = read_yaml(path)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise FormatError(f"{where!r} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise FormatError(f"{where!r} holds a {type(config).__name__}, where settings should be.")
    return config


def _source(config: Mapping[str, Any], file: Path) -> Source:
    for name in _SHARED:
        if not isinstance(config.get(name), str):
            raise FormatError(
                f"{shown(file.parent / _CONFIG)!r}: {name} is {config.get(name)!r:.60}, where a text should be."
            )
    found = _LAYER.fullmatch(file.name)
    assert found is not None
    sites = [site_of_hook(f"blocks.{found[1]}.{config[f'feature_{side}_hook']}") for side in ("input", "output")]
    return Source("circuit_tracer", model=config["model_name"], site=sites[0], target_site=_mlp_out(sites[1]))


def _mlp_out(site: str) -> str:
    """Return the site that is predicted; `mlp.hook_out` is the MLP's output, too."""
    found = re.fullmatch(r"blocks\.(\d+)\.mlp\.hook_out", site)
    return f"mlp_out.{found[1]}" if found else site


def _hooks_of(sae: PortableSAE) -> tuple[str, str, int]:
    """Return the hooks of a transcoder as config.yaml has them, and its layer.

    Raises:
        FormatError: It is not a transcoder within one layer, or its sites are not known.
    """
    source = sae.source
    if source.target_site is None:
        raise FormatError("circuit-tracer holds transcoders, and this SAE predicts what it reads.")
    hooks = [
        re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_of_site(site or "") or "")
        for site in (source.site, source.target_site)
    ]
    read, predicted = hooks
    if read is None or predicted is None or read[1] != predicted[1]:
        there = source.site or "what is not known"
        raise FormatError(
            f"circuit-tracer holds transcoders of one layer's sites, and this one reads {there} and predicts "
            f"{source.target_site}; name sites such as mlp_in.3 and mlp_out.3."
        )
    return read[2], predicted[2], int(read[1])


def _layer_of(sae: PortableSAE) -> int:
    return _hooks_of(sae)[2]


def _config_of(sae: PortableSAE) -> dict[str, str]:
    """Return what config.yaml says of an SAE, or refuse one that circuit-tracer has no form for."""
    if sae.activation not in ("relu", "jumprelu"):
        named = {"topk": "TopK", "gated": "Gated"}.get(sae.activation, sae.activation)
        raise FormatError(
            f"circuit-tracer has no {named}: its latents are ReLU's, or JumpReLU's with a threshold each."
        )
    read, predicted, _ = _hooks_of(sae)
    if sae.W_enc.shape[0] != sae.W_dec.shape[1]:
        raise FormatError(
            f"circuit-tracer holds transcoders of one width, and this one reads {sae.W_enc.shape[0]} and predicts "
            f"{sae.W_dec.shape[1]}."
        )
    if sae.source.model is None:
        raise FormatError("circuit-tracer's config.yaml names the language model, which is not known; name it.")
    return {
        "model_kind": _SET,
        "model_name": sae.source.model,
        "feature_input_hook": read,
        "feature_output_hook": predicted,
        "scan": sae.source.model,
    }


def _check_same_set(there: Mapping[str, Any], config: Mapping[str, str], folder: Path) -> None:
    for name in _SHARED:
        if there.get(name) != config[name]:
            raise FormatError(
                f"{name} is {there.get(name)!r:.80} in the {_CONFIG} that is there, and {config[name]!r} here; a set "
                "is of one model and one pair of hooks. Name another folder."
            )
