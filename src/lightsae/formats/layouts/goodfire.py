"""Goodfire's SAEs of Llama 3.1 8B and 3.3 70B Instruct on residual streams.

Layout:  `Llama-3.1-8B-Instruct-SAE-l19/Llama-3.1-8B-Instruct-SAE-l19.pth` (70B: .pt), a pickled dict of
         encoder_linear.weight (F, D), encoder_linear.bias, decoder_linear.weight (D, F), decoder_linear.bias. ReLU; the
         decoder's bias is not subtracted, and no input is scaled.
Source:  the repositories' cards (function, data, L0), and SAELens 6.
"""

import re
from pathlib import Path
from typing import ClassVar

from lightsae.formats.layouts.base import Layout
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.tensors import read_linear_layers

_FILE = re.compile(r"(Llama-3\.1-8B|Llama-3\.3-70B)-Instruct-SAE-l(\d+)\.pth?")
_L0 = {"Llama-3.1-8B": 91.0, "Llama-3.3-70B": 121.0}


class Goodfire(Layout):
    """One file, whose name says the model and the layer."""

    name: ClassVar[str] = "goodfire"
    label: ClassVar[str] = "Goodfire"
    weights: ClassVar[tuple[str, ...]] = ("*-SAE-l*.pt*",)

    def problem(self, path: Path) -> str | None:
        return None if _file_of(path) else "it is or has no Llama-3...-Instruct-SAE-lL.pt or .pth of Goodfire's"

    def read(self, path: Path) -> PortableSAE:
        file = _file_of(path)
        assert file is not None
        name = _FILE.fullmatch(file.name)
        assert name is not None
        source = Source(
            self.name,
            model=f"meta-llama/{name[1]}-Instruct",
            site=f"resid_post.{name[2]}",
            dataset="lmsys/lmsys-chat-1m",
            published=(("l0", _L0[name[1]]),),
        )
        return PortableSAE("relu", **read_linear_layers(file, "encoder_linear", "decoder_linear"), source=source)


def _file_of(path: Path) -> Path | None:
    candidates = [path] if path.is_file() else sorted(path.glob("*-SAE-l*.pt*"))
    return next((one for one in candidates if _FILE.fullmatch(one.name)), None)
