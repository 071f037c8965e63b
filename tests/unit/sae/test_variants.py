"""The plain structure with a mechanism: the mechanism's settings are the SAE's own, and nothing is said twice."""

import copy
import inspect
import pickle

import pytest
import torch

from lightsae.sae import MECHANISMS, VARIANTS, BatchTopK, SparseAutoencoder, TopK, Widths, mechanisms
from lightsae.sae.variants import plain


class Halved(mechanisms.ReLU):
    """Half of what ReLU keeps.

    Args:
        share: What is kept.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share


class Bare(mechanisms.ReLU):
    """No settings of its own."""

    def __init__(self) -> None:
        super().__init__()


def test_a_new_mechanism_is_a_variant() -> None:
    kind = plain(Halved)
    assert list(inspect.signature(kind).parameters) == ["widths", "d_sae", "share", "refinements"]
    sae = kind(Widths.of(4), 8, share=0.25)
    assert sae.settings == {"d_sae": 8, "share": 0.25, "refinements": sae.refinements}
    assert type(sae.mechanism) is Halved
    assert sae.mechanism.settings == {"share": 0.25}
    assert kind.__doc__.splitlines() == [
        "Half of what ReLU keeps.",
        "",
        "Args:",
        "    widths: Given by the data.",
        "    d_sae: Number of latents.",
        "    share: What is kept.",
        "    refinements: Options beside the mechanism.",
    ]
    assert list(inspect.signature(plain(Bare)).parameters) == ["widths", "d_sae", "refinements"]


@pytest.mark.parametrize("name", MECHANISMS)
def test_its_settings_are_documented_once(name: str) -> None:
    doc = VARIANTS[name].__doc__
    for setting in ("widths", "d_sae", *(p.name for p in MECHANISMS[name].parameters_of()), "refinements"):
        assert doc.count(f"    {setting}: ") == 1, setting


def test_as_an_ordinary_class() -> None:
    assert issubclass(BatchTopK, TopK)
    assert issubclass(BatchTopK, SparseAutoencoder)
    sae = BatchTopK(Widths.of(4), 8, 2, k_aux=3)
    assert (sae.k, sae.k_aux) == (2, 3)
    for other in (pickle.loads(pickle.dumps(sae)), copy.deepcopy(sae)):
        assert type(other) is BatchTopK
        assert other.settings == sae.settings
        assert torch.equal(other.W_dec, sae.W_dec)
    for wrong in ({}, {"k": 2, "kk": 3}):
        with pytest.raises(TypeError, match=r"'k+'"):
            TopK(Widths.of(4), 8, **wrong)


def test_who_competes() -> None:
    competing = {name for name, kind in MECHANISMS.items() if kind.competes}
    assert competing == {"TopK", "BatchTopK", "GroupMax", "MatchingPursuit"}
