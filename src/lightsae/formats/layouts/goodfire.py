"""Goodfire's SAEs of Llama 3.1 8B and 3.3 70B Instruct on residual streams.

Layout:  `Llama-3.1-8B-Instruct-SAE-l19/Llama-3.1-8B-Instruct-SAE-l19.pth` (70B: .pt), a pickled dict of
         encoder_linear.weight (F, D), encoder_linear.bias, decoder_linear.weight (D, F), decoder_linear.bias. ReLU; the
         decoder's bias is not subtracted, and no input is scaled.
Source:  the repositories' cards (function, data, L0), and SAELens 6.
"""

import re
from typing import ClassVar

from lightsae.formats.layouts.linear_layers import LinearLayers
from lightsae.formats.layouts.source import Source

_L0 = {"Llama-3.1-8B": 91.0, "Llama-3.3-70B": 121.0}


class Goodfire(LinearLayers):
    """One file, whose name says the model and the layer."""

    name: ClassVar[str] = "goodfire"
    label: ClassVar[str] = "Goodfire"
    weights: ClassVar[tuple[str, ...]] = ("*-SAE-l*.pt*",)
    file: ClassVar[re.Pattern[str]] = re.compile(r"(Llama-3\.1-8B|Llama-3\.3-70B)-Instruct-SAE-l(\d+)\.pth?")
    missing: ClassVar[str] = "it is or has no Llama-3...-Instruct-SAE-lL.pt or .pth of Goodfire's"
    layers: ClassVar[tuple[str, str]] = ("encoder_linear", "decoder_linear")

    def source(self, named: re.Match[str]) -> Source:
        return Source(
            self.name,
            model=f"meta-llama/{named[1]}-Instruct",
            site=f"resid_post.{named[2]}",
            dataset="lmsys/lmsys-chat-1m",
            published=(("l0", _L0[named[1]]),),
        )
