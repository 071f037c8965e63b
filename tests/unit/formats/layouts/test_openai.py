"""OpenAI's SAEs beyond the contract: what is refused, and why."""

from pathlib import Path

import pytest
import torch

from helpers.errors import refused
from helpers.layout_files.openai import state, write
from lightsae.errors import FormatError
from lightsae.formats.saved_sae import SavedSAE

TOPK = {"activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "ReLU"}}


def test_a_norm_of_each_token_is_named(tmp_path: Path) -> None:
    with refused(FormatError, r"activation TopK each token is normalised by itself \(token_norm\)"):
        SavedSAE.open(write(tmp_path, {**state(), **TOPK}))


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
