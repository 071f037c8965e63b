"""Crosscoders of others: sites, norms in units of each site, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch

from helpers.errors import refused
from helpers.layout_files import D, F, drawn
from helpers.layout_files.crosscoders import S, ckkissane, state, write
from lightsae.errors import FormatError
from lightsae.formats.layouts import PortableSAE, layout_of
from lightsae.formats.native import load_sae, save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import Crosscoder, SiteRef


def test_the_two_models_of_a_model_diff(tmp_path: Path) -> None:
    folder, _ = ckkissane(tmp_path)
    saved = SavedSAE.open(folder)
    expected = [SiteRef("google/gemma-2-2b", "resid_pre.14"), SiteRef("google/gemma-2-2b-it", "resid_pre.14")]
    assert list(saved.sae.widths.read) == expected
    (said,) = saved.provenance.values["folded"]
    assert "no file holds it" in said


@pytest.mark.parametrize(
    ("change", "site"),
    [
        ({"model_name": "pythia-70m"}, "resid_pre.14 (2 of 2)"),
        ({"hook_point": None}, "activations (2 of 2)"),
        ({"model_name": None}, "resid_pre.14 (2 of 2)"),
    ],
)
def test_without_names_sites_are_numbered(change: dict[str, object], site: str, tmp_path: Path) -> None:
    folder, _ = ckkissane(tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | change))
    assert [at.site for at in SavedSAE.open(folder).sae.widths.read][1] == site


def test_norms_are_compared_in_units_of_each_site(tmp_path: Path) -> None:
    tensors = state(means=True)
    sae = SavedSAE.open(write(tmp_path, tensors)).sae
    assert isinstance(sae, Crosscoder)
    norms = tensors["decoder.weight"].norm(dim=2).T
    torch.testing.assert_close(sae.site_norms(), norms)
    torch.testing.assert_close(sae.relative_norms(), norms / norms.sum(1, keepdim=True))


def test_it_can_be_exported_and_has_no_other_layout(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", state(means=True, batch_topk=True))
    sae = SavedSAE.open(folder).sae
    save_sae(sae, tmp_path / "ours")
    x = 3 * drawn(16, S * D, seed=5)
    assert torch.equal(load_sae(tmp_path / "ours").encode(x), sae.encode(x))
    with refused(FormatError, "reads several sites, and no other layout holds such an SAE"):
        PortableSAE.of(sae, layout_of(folder).read(folder).source)


def test_a_latent_without_norm_never_fires(tmp_path: Path) -> None:
    tensors = state(batch_topk=True)
    tensors["decoder.weight"][:, 3] = 0
    assert not SavedSAE.open(write(tmp_path, tensors)).sae.encode(100 * drawn(64, S * D))[:, 3].any()


@pytest.mark.parametrize(
    ("change", "config", "told"),
    [
        ({"threshold": torch.tensor(-1.0)}, {}, "threshold is -1, and so was never set"),
        ({"threshold": torch.zeros(S)}, {}, "each site chooses its own latents (DECOUPLED)"),
        ({"code_normalization_id": torch.tensor(5)}, {}, "code_normalization_id is 5"),
        ({"code_normalization_id": torch.tensor(3)}, {}, "does not say code_normalization_alpha_cc"),
        ({"code_normalization_id": torch.tensor(1.0)}, {}, "code_normalization_id is float32"),
        ({}, {"encoder_layers": [0]}, "encoder_layers leaves sites out"),
        ({"decoder.weight": torch.zeros(3, F, D)}, {}, "decoder.weight has shape (3, 16, 6)"),
        ({"encoder.weight": torch.zeros(S, D)}, {}, "encoder.weight has shape (2, 6)"),
        ({"more": torch.zeros(1)}, {}, "holds 'more', which"),
        ({"activation_mean": torch.zeros(S, D), "activation_global_scale": torch.zeros(S)}, {}, "a scale is above 0"),
    ],
)
def test_what_has_no_form(
    change: dict[str, torch.Tensor], config: dict[str, object], told: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, {**state(batch_topk=True), **change}, **config)
    with refused(FormatError, re.escape(told)):
        SavedSAE.open(folder)


def test_one_site_is_no_crosscoder(tmp_path: Path) -> None:
    tensors = {"encoder.weight": drawn(1, D, F), "encoder.bias": drawn(F), "decoder.weight": drawn(1, F, D)}
    with refused(FormatError, "The file makes no crosscoder: A Crosscoder reads several sites"):
        SavedSAE.open(write(tmp_path, {**tensors, "decoder.bias": drawn(1, D)}))


def test_a_model_of_the_hub_is_no_crosscoder(tmp_path: Path) -> None:
    write(tmp_path, state())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with refused(FormatError, "holds no SAE of a known layout"):
        SavedSAE.open(tmp_path)
