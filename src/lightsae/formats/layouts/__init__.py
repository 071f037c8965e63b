"""The layouts of others: each opens as one of our variants, with what was folded said.

A layout is one file here, one line in `LAYOUTS`, and one line in the table of tests/contract/test_layouts.py.
"""

from pathlib import Path

from lightsae.errors import FormatError
from lightsae.formats.files import shown
from lightsae.formats.layouts.base import Layout, Opened, WritableLayout
from lightsae.formats.layouts.circuit_tracer import CircuitTracer
from lightsae.formats.layouts.crosscoders import FinetuningCrosscoder, ModelDiffCrosscoder
from lightsae.formats.layouts.deepseek_r1 import DeepSeekR1
from lightsae.formats.layouts.dictionary_learning import DictionaryLearning
from lightsae.formats.layouts.gemma_scope import GemmaScope
from lightsae.formats.layouts.gemma_scope_2 import GemmaScope2
from lightsae.formats.layouts.goodfire import Goodfire
from lightsae.formats.layouts.llama_scope import LlamaScope, LlamaScopeR1
from lightsae.formats.layouts.llamascopium import Llamascopium
from lightsae.formats.layouts.openai import OpenAI
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.qwen_scope import QwenScope
from lightsae.formats.layouts.sae_lens import SAELens
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.sparsify import Sparsify

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        GemmaScope(),
        GemmaScope2(),
        LlamaScope(),
        LlamaScopeR1(),
        Llamascopium(),
        QwenScope(),
        Goodfire(),
        DeepSeekR1(),
        SAELens(),
        DictionaryLearning(),
        Sparsify(),
        CircuitTracer(),
        OpenAI(),
        ModelDiffCrosscoder(),
        FinetuningCrosscoder(),
    )
}

__all__ = ["LAYOUTS", "Layout", "Opened", "PortableSAE", "Source", "WritableLayout", "layout_of", "verdicts"]


def verdicts(path: Path) -> dict[str, str | None]:
    """Return, by layout, why a path is not of it; None for the one that it is."""
    return {name: layout.problem(path) for name, layout in LAYOUTS.items()}


def layout_of(path: Path) -> Layout:
    """Return the layout of an SAE's files.

    Args:
        path: A file or folder that exists.

    Raises:
        FormatError: No layout knows it, or several do.
    """
    fits = [name for name, problem in verdicts(path).items() if problem is None]
    if not fits:
        none = "has no 'sae.json' and holds" if path.is_dir() else "holds"
        raise FormatError(
            f"{shown(path)!r} {none} no SAE of a known layout; which there are, and why it is none of them: lightsae "
            f"open {shown(path)}"
        )
    if len(fits) > 1:
        labels = " and ".join(LAYOUTS[name].label for name in fits)
        raise FormatError(
            f"{shown(path)!r} holds files of {labels}; name the file, or keep them in folders of their own."
        )
    return LAYOUTS[fits[0]]
