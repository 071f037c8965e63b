"""The SAEs of qresearch: DeepSeek-R1-Distill-Llama 8B and 70B and Llama 3.2 1B Instruct, on residual streams.

Layout:  `DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt`, a pickled dict of encoder.weight (F, D), encoder.bias,
         decoder.weight (D, F), decoder.bias. ReLU; the decoder's bias is not subtracted, and no input is scaled.
Source:  the repositories' cards (data, L0), and their notebook, which reads the input of block L; SAELens 6 reads its
         output.
"""

import re
from typing import ClassVar

from lightsae.formats.layouts.linear_layers import LinearLayers
from lightsae.formats.layouts.source import Source

_L0 = {"DeepSeek-R1-Distill-Llama-8B": 93.0, "Llama-3.2-1B-Instruct": 63.0}


class DeepSeekR1(LinearLayers):
    """One file, whose name says the model and the layer."""

    name: ClassVar[str] = "deepseek_r1"
    label: ClassVar[str] = "qresearch's DeepSeek-R1"
    weights: ClassVar[tuple[str, ...]] = ("*-SAE-l*.pt",)
    file: ClassVar[re.Pattern[str]] = re.compile(
        r"(DeepSeek-R1-Distill-Llama-\d+B|Llama-3\.2-1B-Instruct)-SAE-l(\d+)\.pt"
    )
    missing: ClassVar[str] = "it is or has no ...-SAE-lL.pt of qresearch's"
    layers: ClassVar[tuple[str, str]] = ("encoder", "decoder")

    def source(self, named: re.Match[str]) -> Source:
        return Source(
            self.name,
            model=f"{'deepseek-ai' if named[1].startswith('DeepSeek') else 'meta-llama'}/{named[1]}",
            site=f"resid_pre.{named[2]}",
            dataset="lmsys/lmsys-chat-1m",
            published=(("l0", _L0[named[1]]),) if named[1] in _L0 else (),
        )
