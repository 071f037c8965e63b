"""OpenAI's SAEs beyond the contract: what is refused, and why."""

from pathlib import Path

import pytest
import torch

from helpers.errors import refused
from helpers.layout_files.openai import state, write
from lightsae.errors import FormatError
from lightsae.formats.layouts import LAYOUTS, PortableSAE, WritableLayout
from lightsae.formats.saved_sae import SavedSAE

TOPK = {"activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "ReLU"}}


@pytest.mark.parametrize("layout", ["dictionary_learning", "sparsify"])
def test_no_other_form_for_a_norm_of_each_token(layout: str, tmp_path: Path) -> None:
    read = LAYOUTS["openai"].read(write(tmp_path / "theirs", {**state(), **TOPK}))
    assert isinstance(read, PortableSAE)
    assert read.token_norm == "layer_norm"
    writer = LAYOUTS[layout]
    assert isinstance(writer, WritableLayout)
    (tmp_path / "ours").mkdir()
    with refused(FormatError, r"normalises no token by itself, as this SAE does \(token_norm layer_norm\)"):
        writer.write(read, tmp_path / "ours")
    assert not list((tmp_path / "ours").iterdir())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"activation": "Identity"}, "activation is 'Identity'"),
        ({"activation": 3}, "activation is 3;"),
        ({**TOPK, "activation_state_dict": {}}, "says no k"),
        ({**TOPK, "activation_state_dict": [4]}, "says no k"),
        ({**TOPK, "activation_state_dict": {"k": 4.5}}, "says no k"),
        ({**TOPK, "activation_state_dict": {"k": 4, "postact_fn": "Identity"}}, "postact_fn is 'Identity'"),
        ({"threshold": 0.3}, "holds 'threshold', which"),
        ({"scale": torch.ones(1)}, "holds 'scale', which"),
        ({"pre_bias": torch.ones(1)}, "pre_bias has shape"),
    ],
)
def test_a_state_dict_of_something_else(change: dict[str, object], told: str, tmp_path: Path) -> None:
    with refused(FormatError, told):
        SavedSAE.open(write(tmp_path, {**state(), **change}))


def test_layers_of_a_folder_are_listed(tmp_path: Path) -> None:
    for layer in range(12):
        path = write(tmp_path, state(), layer=layer)
    with refused(FormatError, r"holds 12 SAEs: 0\.pt, 1\.pt, .*, 7\.pt and 4 more; name the file of one\."):
        SavedSAE.open(path.parent)
