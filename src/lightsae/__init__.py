"""lightsae: train, judge, interpret and steer with sparse autoencoders on language-model activations.

The public names are imported when they are first used, so that `import lightsae` and the tokenising workers stay light.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightsae.moved import MovedModules, with_channel

if TYPE_CHECKING:
    from lightsae.activations.datamodule import ActivationDataModule
    from lightsae.analysis.dictionary import FeatureDictionary
    from lightsae.analysis.steering import steer
    from lightsae.formats.native import save_sae
    from lightsae.formats.saved_sae import load_sae
    from lightsae.lm import LanguageModel
    from lightsae.production.monitor import monitor
    from lightsae.production.registry import load_channel
    from lightsae.sae import (
        BatchTopK,
        Crosscoder,
        Gated,
        GroupMax,
        JumpReLU,
        Matryoshka,
        Refinements,
        ReLU,
        SparseAutoencoder,
        TopK,
        Transcoder,
    )
    from lightsae.training.entries import Entry
    from lightsae.training.module import SAEModule

__all__ = [
    "ActivationDataModule",
    "BatchTopK",
    "Crosscoder",
    "Entry",
    "FeatureDictionary",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "LanguageModel",
    "Matryoshka",
    "ReLU",
    "Refinements",
    "SAEModule",
    "SparseAutoencoder",
    "TopK",
    "Transcoder",
    "load_channel",
    "load_sae",
    "monitor",
    "save_sae",
    "steer",
]
_HOMES = {
    "ActivationDataModule": "lightsae.activations.datamodule",
    "BatchTopK": "lightsae.sae",
    "Crosscoder": "lightsae.sae",
    "Entry": "lightsae.training.entries",
    "FeatureDictionary": "lightsae.analysis.dictionary",
    "Gated": "lightsae.sae",
    "GroupMax": "lightsae.sae",
    "JumpReLU": "lightsae.sae",
    "LanguageModel": "lightsae.lm",
    "Matryoshka": "lightsae.sae",
    "ReLU": "lightsae.sae",
    "Refinements": "lightsae.sae",
    "SAEModule": "lightsae.training.module",
    "SparseAutoencoder": "lightsae.sae",
    "TopK": "lightsae.sae",
    "Transcoder": "lightsae.sae",
    "load_channel": "lightsae.production.registry",
    "load_sae": "lightsae.formats.saved_sae",
    "monitor": "lightsae.production.monitor",
    "save_sae": "lightsae.formats.native",
    "steer": "lightsae.analysis.steering",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lightsae' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = with_channel(value) if name == "steer" else value
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)


sys.meta_path.insert(0, MovedModules())
