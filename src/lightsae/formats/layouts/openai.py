"""OpenAI's SAEs of GPT-2 small: a state dict for each layer, with the activation's name in it.

Layout:  `LOCATION_VERSION/autoencoders/LAYER.pt`: pre_bias (D), encoder.weight (F, D), latent_bias (F), decoder.weight
         (D, F), or decoder.linear.weight (F, D) where the decoder is the encoder's transpose; `activation`, the name of
         a class, and `activation_state_dict` with its k; counters of the training.
         z = (x - pre_bias) encoder^T + latent_bias, x_hat = f decoder^T + pre_bias. With the activation TopK x is
         normalised first, token by token (less its mean, divided by its standard deviation + 1e-5), and x_hat is
         brought back: the `layer_norm` of `lightsae.sae.token_norm`.
Axes:    D width, F latents.
Source:  Gao et al. 2024, arXiv:2406.04093, and the repository openai/sparse_autoencoder.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from lightsae.errors import FormatError
from lightsae.formats.checks import fits
from lightsae.formats.files import natural_order
from lightsae.formats.layouts.base import Layout, the_only_one
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.tensors import Tensors, read_pickle

_FILE = re.compile(r"(\d+)\.pt", re.ASCII)
_COUNTERS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_MODEL = "openai-community/gpt2"
# The residual stream between attention and MLP has no portable name.
_SITES = {
    "mlp_post_act": "mlp_act.{}",
    "resid_delta_attn": "attn_out.{}",
    "resid_delta_mlp": "mlp_out.{}",
    "resid_post_attn": "transformer.h.{}.ln_2.input",
    "resid_post_mlp": "resid_post.{}",
}
_LOCATION = re.compile(rf"({'|'.join(_SITES)})(?:_v\d+\w*)?")


class OpenAI(Layout):
    """`LAYER.pt`, with the place in the model in its path."""

    name: ClassVar[str] = "openai"
    label: ClassVar[str] = "OpenAI sparse_autoencoder"

    def problem(self, path: Path) -> str | None:
        if path.is_dir():
            return None if _layers(path) else "it has no LAYER.pt"
        return None if _is_layer(path) else "it is no LAYER.pt"

    def read(self, path: Path) -> PortableSAE:
        file = _one_of(path)
        tensors, others = read_pickle(file)
        tensors.drop(*_COUNTERS)
        activation = others.pop("activation", "ReLU")
        settings = others.pop("activation_state_dict", {})
        if others:
            raise FormatError(f"{tensors.where!r} holds {min(others)!r}, which an SAE of this layout does not have.")
        k = _k(activation, settings, tensors.where)
        portable = _portable(tensors, k, _source(file))
        tensors.finish()
        return portable


def _layers(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*.pt") if _is_layer(path)), key=natural_order)


def _is_layer(path: Path) -> bool:
    # Beside a crosscoder's N.pt lies its N_cfg.json.
    return _FILE.fullmatch(path.name) is not None and not path.with_name(f"{path.stem}_cfg.json").is_file()


def _one_of(path: Path) -> Path:
    return the_only_one(_layers(path), path, "the file of one") if path.is_dir() else path


def _k(activation: Any, settings: Any, where: str) -> int | None:
    """Return the k of TopK, None for ReLU."""
    if activation == "ReLU":
        return None
    if activation != "TopK":
        raise FormatError(f"{where!r}: its activation is {activation!r:.60}; those that are read are ReLU and TopK.")
    k, after = (settings.get("k"), settings.get("postact_fn", "ReLU")) if isinstance(settings, dict) else (None, None)
    if k is None or not fits(k, int):
        raise FormatError(f"{where!r}: activation_state_dict says no k, which the activation TopK has.")
    if after != "ReLU":
        raise FormatError(f"{where!r}: postact_fn is {after!r:.60}: latents may be negative; there is no such form.")
    return int(k)


def _portable(tensors: Tensors, k: int | None, source: Source) -> PortableSAE:
    W_enc, b_enc = tensors.take("encoder.weight", "F", "D").T, tensors.take("latent_bias", "F")
    tied = "decoder.linear.weight" in tensors
    W_dec = tensors.take("decoder.linear.weight", "F", "D") if tied else tensors.take("decoder.weight", "D", "F").T
    b_dec = tensors.take("pre_bias", "D")
    portable = PortableSAE("relu", W_enc, b_enc, W_dec, b_dec, subtracts_b_dec=True, source=source)
    return portable if k is None else replace(portable, activation="topk", k=k, token_norm="layer_norm")


def _source(file: Path) -> Source:
    """Read the place off the path, as far as it was kept; all that were published are of GPT-2 small."""
    location = next((found[1] for name in file.absolute().parts if (found := _LOCATION.fullmatch(name))), None)
    if location is None:
        return Source("openai")
    return Source("openai", model=_MODEL, site=_SITES[location].format(file.stem))
