"""Steering as a control vector in a GGUF file, which llama.cpp and what is built on it add while a model writes.

Layers:  `direction.N` is added to what block N leaves, blocks counted from 0: `resid_post.N`, which is `resid_pre.M` of
         M = N + 1. N is 1 or more: llama.cpp keeps no vector for block 0.
File:    GGUF 3: general.architecture is "controlvector"; controlvector.model_hint, a name that is only shown;
         controlvector.layer_count; a float32 vector. The strength is in the vector, so that its scale is 1.
Axes:    D width of the site.
"""

import re
import struct
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lightsae.analysis.steering.steer import Steering
from lightsae.errors import ConfigError, SiteError
from lightsae.formats.files import write_atomically

ARCHITECTURE = "controlvector"
_MAGIC, _VERSION, _ALIGNMENT = b"GGUF", 3, 32
# Types of values, and of tensors, as the format numbers them.
_UINT32, _STRING, _F32 = 4, 8, 0


def write_control_vector(steering: Steering, path: str | Path, model_hint: str) -> int:
    """Write what a steering adds.

    llama.cpp adds it at every token, the first ones among them, which `steer` leaves alone.

    Args:
        steering: Additions alone, without conditions, at the residual stream after a block above 0.
        path: The file, which ends in .gguf.
        model_hint: The kind of language model: `llama`.

    Returns:
        The layer, as llama.cpp counts.

    Raises:
        ConfigError: Something else than additions is done, or the file cannot be written.
        SiteError: The site is another one.
    """
    layer = layer_of(steering.site.site)
    vector = steering.added
    if vector is None:
        raise ConfigError(
            "gguf",
            str(path),
            "a control vector holds what is added to every token alike, and not this; write kind='add', without "
            "a condition, for an SAE without token_norm",
        )
    with write_atomically(path) as temporary:
        temporary.write_bytes(to_gguf({layer: vector}, model_hint))
    return layer


def layer_of(site: str) -> int:
    """Return the layer of a site, as llama.cpp counts.

    Raises:
        SiteError: Control vectors are not added there.

    >>> layer_of("resid_post.6"), layer_of("resid_pre.6")
    (6, 5)
    """
    found = re.fullmatch(r"resid_(post|pre)\.(\d+)", site)
    layer = int(found[2]) - (found[1] == "pre") if found else 0
    if layer < 1:
        raise SiteError(
            f"{site!r} is no place of a control vector: llama.cpp adds after a block above 0 (resid_post.1, ...)."
        )
    return layer


def to_gguf(directions: dict[int, Float[Tensor, " D"]], model_hint: str) -> bytes:
    """Return the file of some directions, by layer."""
    pairs = (
        ("general.architecture", _STRING, _text(ARCHITECTURE)),
        (f"{ARCHITECTURE}.model_hint", _STRING, _text(model_hint)),
        (f"{ARCHITECTURE}.layer_count", _UINT32, struct.pack("<I", len(directions))),
    )
    head = _MAGIC + struct.pack("<IQQ", _VERSION, len(directions), len(pairs))
    head += b"".join(_text(key) + struct.pack("<I", kind) + value for key, kind, value in pairs)
    body = b""
    for layer, vector in sorted(directions.items()):
        values = np.ascontiguousarray(vector.float().cpu().numpy(), "<f4")
        # Dimensions, their sizes, the type, and where it begins in the body.
        head += _text(f"direction.{layer}") + struct.pack("<IQIQ", 1, len(values), _F32, len(body))
        body += _padded(values.tobytes())
    return _padded(head) + body


def _text(words: str) -> bytes:
    encoded = words.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
