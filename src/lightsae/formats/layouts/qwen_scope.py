"""Qwen-Scope: TopK SAEs of Qwen3 and Qwen3.5 on residual streams.

Layout:  `SAE-Res-{model}-W{N}K-L0_{k}/layer{L}.sae.pt`, a pickled dict of W_enc (F, D), W_dec (D, F), b_enc, b_dec.
         The file does not say k: the repository's name does. `b_dec` is not subtracted, and no input is scaled. Ours
         leaves out a latent among the k largest that is not positive.
Source:  arXiv:2605.11887, and the repositories' cards.
"""

import re
from pathlib import Path
from typing import ClassVar

from lightsae.errors import FormatError
from lightsae.formats.files import natural_order, shown
from lightsae.formats.layouts.base import Layout, the_only_one
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.tensors import read_pickle

_FILE = re.compile(r"layer(\d+)\.sae\.pt")
_REPOSITORY = re.compile(r"SAE-Res-(Qwen.+)-W(\d+)K-L0_(\d+)$")


class QwenScope(Layout):
    """One file a layer, in a folder whose name says the model and k."""

    name: ClassVar[str] = "qwen_scope"
    label: ClassVar[str] = "Qwen-Scope"
    weights: ClassVar[tuple[str, ...]] = ("layer*.sae.pt",)

    def problem(self, path: Path) -> str | None:
        if path.is_file():
            return None if _FILE.fullmatch(path.name) else "it is no layerL.sae.pt"
        return None if _files_in(path) else "it has no layerL.sae.pt"

    def read(self, path: Path) -> PortableSAE:
        file = path if path.is_file() else the_only_one(_files_in(path), path, "the file of one")
        name = next((found for part in file.absolute().parts if (found := _REPOSITORY.search(part))), None)
        if name is None:
            raise FormatError(
                f"{shown(file)!r} does not say how many latents a token keeps; put it into a folder named as its "
                "repository, such as SAE-Res-Qwen3-8B-Base-W64K-L0_50."
            )
        tensors, _ = read_pickle(file)
        W_enc, b_enc = tensors.take("W_enc", "F", "D").T, tensors.take("b_enc", "F")
        W_dec, b_dec = tensors.take("W_dec", "D", "F").T, tensors.take("b_dec", "D")
        tensors.finish()
        k, layer = int(name[3]), _FILE.fullmatch(file.name)
        assert layer is not None
        source = Source(
            self.name, model=f"Qwen/{name[1]}", site=f"resid_post.{int(layer[1])}", published=(("l0", float(k)),)
        )
        return PortableSAE("topk", W_enc, b_enc, W_dec, b_dec, k=k, source=source)


def _files_in(folder: Path) -> list[Path]:
    files = (path for path in folder.glob("layer*.sae.pt") if _FILE.fullmatch(path.name))
    return sorted(files, key=natural_order)
