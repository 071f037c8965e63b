"""Gemma Scope 2: JumpReLU SAEs of Gemma 3 on residual streams, attention and MLP outputs; transcoders, also with skip.

Layout:  `{site}/layer_{L}_width_{W}_l0_{small,medium,big}[_affine][_seed_S]/params.safetensors` with w_enc (D, F),
         b_enc, w_dec (F, O), b_dec, threshold, and of `_affine` transcoders affine_skip_connection (D, O). `b_dec` is
         not subtracted, and no input is scaled. `config.json` beside it names model, modules and the L0 aimed at;
         where it is missing, the path does. `attn_out` reads the heads' outputs, before the output projection.
         Cross-layer transcoders and crosscoders of the same repositories read or predict several layers.
Source:  McDougall et al. 2025, Gemma Scope 2, and the files themselves; the modules as their config.json names them,
         also where a model with images has its blocks a level deeper.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from lightsae.errors import FormatError
from lightsae.formats.files import shown
from lightsae.formats.layouts.base import Layout
from lightsae.formats.layouts.description import Description
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import UNKNOWN_TARGET, Source
from lightsae.formats.layouts.tensors import read_safetensors, shapes_in

_FILE, _SKIP = "params.safetensors", "affine_skip_connection"
_REPOSITORY = re.compile(r"gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)\b")
_FOLDER = re.compile(r"layer_(\d+)_width_\w+?_l0_")
_MODULE = re.compile(r"model\.(?:language_model\.)?layers\.(\d+)\.(.+)")
# Gemma 3's modules by the portable names of what they hold; the MLP's norms stand before and after it.
_KINDS = {
    "output": "resid_post",
    "self_attn.o_proj.input": "attn_z",
    "post_attention_layernorm.output": "attn_out",
    "pre_feedforward_layernorm.output": "mlp_in",
    "mlp.input": "mlp_in",
    "post_feedforward_layernorm.output": "mlp_out",
}
# By the folder of the site: what is read and, by a transcoder, predicted.
_SITES: dict[str, tuple[str, str | None]] = {
    "resid_post": ("resid_post", None),
    "attn_out": ("attn_z", None),
    "mlp_out": ("mlp_out", None),
    "transcoder": ("mlp_in", "mlp_out"),
}
_OF_SEVERAL_LAYERS = {"clt": "cross-layer transcoder", "crosscoder": "crosscoder"}


class GemmaScope2(Layout):
    """`params.safetensors`, with `config.json` beside it or with the site in its path."""

    name: ClassVar[str] = "gemma_scope_2"
    label: ClassVar[str] = "Gemma Scope 2"
    weights: ClassVar[tuple[str, ...]] = (_FILE,)

    def problem(self, path: Path) -> str | None:
        if _file_of(path).is_file() or _several_layers(path):
            return None
        return f"it has no {_FILE}"

    def read(self, path: Path) -> PortableSAE:
        if kind := _several_layers(path):
            raise FormatError(
                f"{shown(path)!r} is a {kind} of Gemma Scope 2, which reads or predicts several layers; such are not "
                "read. Open a folder of resid_post, attn_out, mlp_out or transcoder."
            )
        file = _file_of(path)
        said = Description.read_if_there(file.with_name("config.json"))
        if (architecture := said.get("architecture", str, "jump_relu")) != "jump_relu":
            raise FormatError(f"{said.where!r}: architecture is {architecture!r}, where 'jump_relu' should be.")
        source = _source(file.parent, said)
        tensors = read_safetensors(file)
        if source.target_site is None and _SKIP in tensors:
            source = replace(source, target_site=UNKNOWN_TARGET)
        wide = "O" if source.target_site else "D"
        W_enc, b_enc = tensors.take("w_enc", "D", "F"), tensors.take("b_enc", "F")
        W_dec, b_dec = tensors.take("w_dec", "F", wide), tensors.take("b_dec", wide)
        threshold = tensors.take("threshold", "F")
        if said.get("affine_connection", bool, False) and _SKIP not in tensors:
            raise FormatError(f"{shown(file)!r} lacks {_SKIP}, which {said.where!r} says it has; copy it again.")
        W_skip = tensors.take(_SKIP, "D", wide) if _SKIP in tensors else None
        tensors.finish()
        return PortableSAE("jumprelu", W_enc, b_enc, W_dec, b_dec, threshold=threshold, W_skip=W_skip, source=source)


def _file_of(path: Path) -> Path:
    return path if path.name == _FILE else path / _FILE


def _several_layers(path: Path) -> str | None:
    """Return what of several layers a path is; None for an SAE or a transcoder of one."""
    file = path if path.is_file() else next(iter(sorted(path.glob("*.safetensors"))), path)
    shapes = shapes_in(file)
    if "w_enc" not in shapes or "w_dec" not in shapes:
        return None
    for name, kind in _OF_SEVERAL_LAYERS.items():
        if name in path.absolute().parts and any(_REPOSITORY.search(part) for part in path.absolute().parts):
            return kind
    if len(shapes["w_enc"]) == len(shapes["w_dec"]) == 2:
        return None
    return "cross-layer transcoder" if len(shapes["w_enc"]) == 2 else "crosscoder"


def _source(folder: Path, said: Description) -> Source:
    """Read the model and the sites off config.json, or off the path as far as it was kept."""
    names = folder.absolute().parts
    repository = next((found for name in names if (found := _REPOSITORY.search(name))), None)
    layer = next((found[1] for name in names if (found := _FOLDER.match(name))), None)
    kinds = next((_SITES[kind] for name in names if (kind := name.removesuffix("_all")) in _SITES), None)
    model = f"google/gemma-3-{repository[1]}-{repository[2]}" if repository else None
    model = "google/gemma-3-270m" if model == "google/gemma-3-270m-pt" else model
    site, target = (one and layer and f"{one}.{layer}" for one in kinds or (None, None))
    model = said.get("model_name", str, model)
    site = _portable(said.get("hf_hook_point_in", str)) or site
    target = _portable(said.get("hf_hook_point_out", str)) or target
    l0 = said.get("l0", float)
    return Source(
        "gemma_scope_2",
        model=model if model is None or "/" in model else f"google/{model}",
        site=site,
        target_site=None if target == site else target,
        published=() if l0 is None else (("l0", float(l0)),),
    )


def _portable(module: str | None) -> str | None:
    found = _MODULE.fullmatch(module or "")
    kind = _KINDS.get(found[2]) if found else None
    return f"{kind}.{found[1]}" if found and kind else module
