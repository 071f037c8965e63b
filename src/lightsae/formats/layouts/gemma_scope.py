"""Gemma Scope: JumpReLU SAEs of Gemma 2 on residual streams, attention, MLP outputs and embeddings; transcoders.

Layout:  `layer_L/width_W/average_l0_N/params.npz` with W_enc (D, F), b_enc, W_dec (F, O), b_dec, threshold; in some
         files the names are in lower case. `b_dec` is not subtracted, and no input is scaled. In place of `layer_L` an
         SAE of embeddings has `embedding`; its tensors are for embeddings before Gemma's factor sqrt(D).
         A transcoder predicts the MLP's output, after its norm, from the MLP's input, before that norm's gain.
Source:  Lieberum et al. 2024, arXiv:2408.05147, and the files themselves; sites, the factor sqrt(D) and the missing
         gain as SAELens 6 reads them. That BOS was left out of the training is from the paper's appendix.
"""

import re
from pathlib import Path
from typing import ClassVar

from lightsae.formats.layouts.base import Layout
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.tensors import Tensors, read_npz

_FILE = "params.npz"
_REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)\b")
_LAYER = re.compile(r"layer_(\d+)$")
_L0 = re.compile(r"average_l0_(\d+)$")
# What is read and, by a transcoder, predicted, by the end of the repository's name.
_SITES: dict[str, tuple[str, str | None]] = {
    "res": ("resid_post.{}", None),
    "mlp": ("mlp_out.{}", None),
    "att": ("attn_z.{}", None),
    "transcoders": ("model.layers.{}.pre_feedforward_layernorm.normalised", "mlp_out.{}"),
}


class GemmaScope(Layout):
    """`params.npz`, with the model and the site in its path."""

    name: ClassVar[str] = "gemma_scope"
    label: ClassVar[str] = "Gemma Scope"
    weights: ClassVar[tuple[str, ...]] = (_FILE,)

    def problem(self, path: Path) -> str | None:
        return None if _file_of(path).is_file() else f"it has no {_FILE}"

    def read(self, path: Path) -> PortableSAE:
        file = _file_of(path)
        names = file.parent.absolute().parts
        tensors = _in_one_case(read_npz(file))
        # A transcoder's two widths are those of one model; another width is found out where the site is read.
        W_enc, b_enc = tensors.take("w_enc", "D", "F"), tensors.take("b_enc", "F")
        W_dec, b_dec = tensors.take("w_dec", "F", "D"), tensors.take("b_dec", "D")
        threshold = tensors.take("threshold", "F")
        tensors.finish()
        sae = PortableSAE("jumprelu", W_enc, b_enc, W_dec, b_dec, threshold=threshold, source=_source(names))
        # Hugging Face's first block takes embeddings with the factor.
        scale = len(b_dec) ** -0.5 if "embedding" in names else 1.0
        return sae.with_scales(scale, scale)


def _file_of(path: Path) -> Path:
    return path if path.name == _FILE else path / _FILE


def _in_one_case(tensors: Tensors) -> Tensors:
    return Tensors({name.lower(): tensors.pop(name) for name in tensors.names}, tensors.where)


def _source(names: tuple[str, ...]) -> Source:
    """Read the model, the sites and the published L0 off the path, as far as it was kept."""
    repository = next((found for name in names if (found := _REPOSITORY.search(name))), None)
    layer = next((found[1] for name in names if (found := _LAYER.match(name))), None)
    l0 = next((float(found[1]) for name in names if (found := _L0.match(name))), None)
    model = f"google/gemma-2-{repository[1]}{'-it' if repository[2] == 'it' else ''}" if repository else None
    site, target = None, None
    if "embedding" in names:
        site = "resid_pre.0"
    elif repository and layer:
        site, target = (one and one.format(layer) for one in _SITES[repository[3]])
    return Source(
        "gemma_scope",
        model=model,
        site=site,
        target_site=target,
        context_size=1024,
        # Attention sinks, of which BOS is the first, were left out of the training.
        sees_bos=False,
        published=() if l0 is None else (("l0", l0),),
    )
