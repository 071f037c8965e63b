"""dictionary_learning: a state dict of one of seven classes, and beside it a `config.json` that names the class.

Layout:  `trainer_i/ae.pt` (also `trainer_i/checkpoints/ae_STEP.pt`) and `trainer_i/config.json` with {"trainer":
         {dict_class, k, layer, lm_name, submodule_name, ...}, "buffer": {io, ctx_len, ...}}. The weights are for raw
         activations. What each class computes stands in `dictionary_learning_classes`.
Source:  the library of that name, version 0.1.0, and its files.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from lightsae.errors import FormatError
from lightsae.formats.files import natural_order
from lightsae.formats.layouts.base import WritableLayout, the_only_one
from lightsae.formats.layouts.description import Description
from lightsae.formats.layouts.dictionary_learning_classes import TRAINERS, class_of, in_their_terms, read_class
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.tensors import read_pickled_tensors

_FILE, _CONFIG = "ae.pt", "config.json"
_OF_A_STEP = re.compile(r"ae_\d+\.pt")
_CROSSCODER = re.compile("crosscoder", re.IGNORECASE)
# "resid_post_layer_8", or "resid_post" where `layer` says the number.
_NAMED = re.compile(
    r"(resid_pre|resid_post|resid_out|attn_z|attn_out|mlp_in|mlp_act|mlp_out)(?:[_.](?:layer_?)?(\d+))?", re.ASCII
)
_PORTABLE = re.compile(r"(\w+)\.(\d+)", re.ASCII)
_SIDES = {"in": "input", "out": "output"}


class DictionaryLearning(WritableLayout):
    """`ae.pt` with its `config.json`; or alone, where its tensors are those of one class."""

    name: ClassVar[str] = "dictionary_learning"
    label: ClassVar[str] = "dictionary_learning"

    def problem(self, path: Path) -> str | None:
        if path.is_dir() and not (path / _FILE).is_file():
            return None if _trainers(path) else f"it has no {_FILE}"
        if not path.is_dir() and path.name != _FILE and not _OF_A_STEP.fullmatch(path.name):
            return f"it is no {_FILE}"
        try:
            said = _config_of(path).part("trainer").get("dict_class", str, "")
        except FormatError:
            # `read` says what is wrong with config.json.
            return None
        return f"{_CONFIG} says that it is a {said}" if _CROSSCODER.search(said) else None

    def read(self, path: Path) -> PortableSAE:
        path = _one_of(path)
        config = _config_of(path)
        trainer = config.part("trainer")
        tensors = read_pickled_tensors(path / _FILE if path.is_dir() else path)
        kind = trainer.get("dict_class", str) or class_of(tensors, config.where)
        portable = read_class(kind, tensors, trainer)
        tensors.finish()
        return replace(portable, source=_source(trainer, config.part("buffer")))

    def write(self, sae: PortableSAE, folder: Path) -> None:
        kind, tensors = in_their_terms(sae)
        described = json.dumps(_config(sae, kind), indent=4, ensure_ascii=False)
        torch.save({name: value.detach().contiguous().clone() for name, value in tensors.items()}, folder / _FILE)
        (folder / _CONFIG).write_text(described + "\n", encoding="utf-8")


def _trainers(folder: Path) -> list[Path]:
    """Return the folders of a run's trainers, or of those of several runs, in the order of their numbers."""
    files = (file for pattern in ("trainer_*", "*/trainer_*") for file in folder.glob(f"{pattern}/{_FILE}"))
    return sorted((file.parent for file in files), key=natural_order)


def _one_of(path: Path) -> Path:
    """Return the file, or the folder with ae.pt, that a path stands for."""
    if not path.is_dir() or (path / _FILE).is_file():
        return path
    return the_only_one(_trainers(path), path, "the folder of one")


def _config_of(path: Path) -> Description:
    folder = path if path.is_dir() else path.parent
    return Description.read_if_there((folder.parent if folder.name == "checkpoints" else folder) / _CONFIG)


def _source(trainer: Description, buffer: Description) -> Source:
    layer, said = trainer.get("layer", int), trainer.get("submodule_name", str)
    side = _SIDES.get(buffer.get("io", str, "out"))
    model, context_size = trainer.get("lm_name", str), buffer.get("ctx_len", int)
    site = None if said is None else _site(said, layer, side)
    return Source("dictionary_learning", model=model or None, site=site, context_size=context_size)


def _site(said: str, layer: int | None, side: str | None) -> str | None:
    """Return our name of a submodule; None where it is none of those that people write, nor a module's path."""
    if named := _NAMED.fullmatch(said):
        number = named[2] if named[2] is not None else layer
        return None if number is None else f"{named[1].replace('resid_out', 'resid_post')}.{number}"
    if _PORTABLE.fullmatch(said) or said.endswith((".input", ".output")):
        return said
    return f"{said}.{side}" if "." in said and side is not None else None


def _config(sae: PortableSAE, kind: str) -> dict[str, Any]:
    """Return config.json, as far as the library's own code and its users look at it."""
    source = sae.source
    portable = _PORTABLE.fullmatch(source.site or "")
    number = portable[2] if portable else next(iter(re.findall(r"\.(\d+)\.", source.site or "")), None)
    trainer = {
        "trainer_class": TRAINERS[kind],
        "dict_class": kind,
        "activation_dim": sae.W_enc.shape[0],
        "dict_size": sae.d_sae,
        "k": sae.k,
        "layer": None if number is None else int(number),
        "lm_name": source.model,
        "submodule_name": f"{portable[1]}_layer_{portable[2]}" if portable else source.site,
        "wandb_name": kind,
    }
    if kind == "MatryoshkaBatchTopKSAE":
        trainer["group_sizes"] = list(sae.groups or ())
    buffer = {"d_submodule": sae.W_enc.shape[0], "io": "out", "ctx_len": source.context_size}
    return {"trainer": trainer, "buffer": buffer}
