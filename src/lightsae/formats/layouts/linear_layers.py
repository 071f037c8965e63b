"""Layouts of one pickled file with two linear layers, whose name says the model and the layer.

Layout:  a dict of the encoder's weight (F, D) and bias, and the decoder's weight (D, F) and bias. ReLU; the decoder's
         bias is not subtracted, and no input is scaled.
Axes:    D width, F latents.
"""

import re
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from lightsae.formats.layouts.base import Layout
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.tensors import read_pickled_tensors


class LinearLayers(Layout):
    """One file, whose name says the model and the layer.

    Attributes:
        file: What the whole name of a file is like.
        missing: What is said of a path without one.
        layers: Names of the encoder and of the decoder.
    """

    file: ClassVar[re.Pattern[str]]
    missing: ClassVar[str]
    layers: ClassVar[tuple[str, str]]

    def problem(self, path: Path) -> str | None:
        return None if self._file_of(path) else self.missing

    def read(self, path: Path) -> PortableSAE:
        file = self._file_of(path)
        assert file is not None
        named = self.file.fullmatch(file.name)
        assert named is not None
        encoder, decoder = self.layers
        tensors = read_pickled_tensors(file)
        W_enc, b_enc = tensors.take(f"{encoder}.weight", "F", "D").T, tensors.take(f"{encoder}.bias", "F")
        W_dec, b_dec = tensors.take(f"{decoder}.weight", "D", "F").T, tensors.take(f"{decoder}.bias", "D")
        tensors.finish()
        return PortableSAE("relu", W_enc, b_enc, W_dec, b_dec, source=self.source(named))

    @abstractmethod
    def source(self, named: re.Match[str]) -> Source:
        """Return what a file's name tells."""

    def _file_of(self, path: Path) -> Path | None:
        candidates = [path] if path.is_file() else sorted(path.glob(self.weights[0]))
        return next((one for one in candidates if self.file.fullmatch(one.name)), None)
