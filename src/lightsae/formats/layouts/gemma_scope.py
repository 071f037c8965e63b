"""Gemma Scope: JumpReLU SAEs of Gemma 2 on residual streams, attention and MLP outputs.

Layout:  `layer_L/width_W/average_l0_N/params.npz` with W_enc (D, F), b_enc, W_dec (F, D), b_dec, threshold; in some
         files the names are in lower case. `b_dec` is not subtracted, and no input is scaled.
Source:  Lieberum et al. 2024, arXiv:2408.05147, and the files themselves.
"""

import re
from pathlib import Path
from typing import ClassVar

from lightsae.formats.layouts.base import Layout
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.tensors import Tensors, read_npz

_FILE = "params.npz"
_SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z"}
_REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att)\b")
_LAYER = re.compile(r"layer_(\d+)$")
_L0 = re.compile(r"average_l0_(\d+)$")


class GemmaScope(Layout):
    """`params.npz`, with the model and the site in its path."""

    name: ClassVar[str] = "gemma_scope"
    label: ClassVar[str] = "Gemma Scope"

    def problem(self, path: Path) -> str | None:
        return None if _file_of(path).is_file() else f"it has no {_FILE}"

    def read(self, path: Path) -> PortableSAE:
        file = _file_of(path)
        tensors = _in_one_case(read_npz(file))
        W_enc, b_enc = tensors.take("w_enc", "D", "F"), tensors.take("b_enc", "F")
        W_dec, b_dec = tensors.take("w_dec", "F", "D"), tensors.take("b_dec", "D")
        threshold = tensors.take("threshold", "F")
        tensors.finish()
        return PortableSAE("jumprelu", W_enc, b_enc, W_dec, b_dec, threshold=threshold, source=_source(file.parent))


def _file_of(path: Path) -> Path:
    return path if path.name == _FILE else path / _FILE


def _in_one_case(tensors: Tensors) -> Tensors:
    return Tensors({name.lower(): tensors.pop(name) for name in tensors.names}, tensors.where)


def _source(folder: Path) -> Source:
    """Read the model, the site and the published L0 off the path, as far as it was kept."""
    names = folder.absolute().parts
    repository = next((found for name in names if (found := _REPOSITORY.search(name))), None)
    layer = next((found[1] for name in names if (found := _LAYER.match(name))), None)
    l0 = next((float(found[1]) for name in names if (found := _L0.match(name))), None)
    site = f"{_SITES[repository[3]]}.{layer}" if repository and layer else None
    model = f"google/gemma-2-{repository[1]}{'-it' if repository[2] == 'it' else ''}" if repository else None
    # Attention sinks, of which BOS is the first, were left out of the training.
    published = () if l0 is None else (("l0", l0),)
    return Source("gemma_scope", model=model, site=site, context_size=1024, sees_bos=False, published=published)
