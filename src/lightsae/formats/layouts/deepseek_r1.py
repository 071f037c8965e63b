"""The SAEs of qresearch: DeepSeek-R1-Distill-Llama 8B and 70B and Llama 3.2 1B Instruct, on residual streams.

Layout:  `DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt`, a pickled dict of encoder.weight (F, D), encoder.bias,
         decoder.weight (D, F), decoder.bias. ReLU; the decoder's bias is not subtracted, and no input is scaled.
Source:  the repositories' cards (data, L0), and their notebook, which reads the input of block L; SAELens 6 reads its
         output.
"""

import re
from pathlib import Path
from typing import ClassVar

from lightsae.formats.layouts.base import Layout
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.tensors import read_linear_layers

_FILE = re.compile(r"(DeepSeek-R1-Distill-Llama-\d+B|Llama-3\.2-1B-Instruct)-SAE-l(\d+)\.pt")
_L0 = {"DeepSeek-R1-Distill-Llama-8B": 93.0, "Llama-3.2-1B-Instruct": 63.0}


class DeepSeekR1(Layout):
    """One file, whose name says the model and the layer."""

    name: ClassVar[str] = "deepseek_r1"
    label: ClassVar[str] = "qresearch's DeepSeek-R1"
    weights: ClassVar[tuple[str, ...]] = ("*-SAE-l*.pt",)

    def problem(self, path: Path) -> str | None:
        return None if _file_of(path) else "it is or has no ...-SAE-lL.pt of qresearch's"

    def read(self, path: Path) -> PortableSAE:
        file = _file_of(path)
        assert file is not None
        name = _FILE.fullmatch(file.name)
        assert name is not None
        source = Source(
            self.name,
            model=f"{'deepseek-ai' if name[1].startswith('DeepSeek') else 'meta-llama'}/{name[1]}",
            site=f"resid_pre.{name[2]}",
            dataset="lmsys/lmsys-chat-1m",
            published=(("l0", _L0[name[1]]),) if name[1] in _L0 else (),
        )
        return PortableSAE("relu", **read_linear_layers(file, "encoder", "decoder"), source=source)


def _file_of(path: Path) -> Path | None:
    candidates = [path] if path.is_file() else sorted(path.glob("*-SAE-l*.pt"))
    return next((one for one in candidates if _FILE.fullmatch(one.name)), None)
