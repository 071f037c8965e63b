"""dictionary_learning beyond the contract: which class an SAE of ours becomes, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.errors import refused
from helpers.layout_files import D, F, drawn
from helpers.layout_files.dictionary_learning import GROUPS, THRESHOLD, K, batch_topk, matryoshka, topk, write
from lightsae.errors import FormatError
from lightsae.formats.layouts import LAYOUTS, PortableSAE, Source, WritableLayout
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import (
    BatchTopK,
    Gated,
    JumpReLU,
    Matryoshka,
    Refinements,
    ReLU,
    SiteRef,
    SparseAutoencoder,
    TopK,
    Transcoder,
    Widths,
    mechanisms,
)

SITE = SiteRef("openai-community/gpt2", "resid_post.6")
WIDTHS = Widths.autoencoder(SITE, D)
SOURCE = Source(model=SITE.model, site=SITE.site, context_size=64)
OFF = Refinements(centre_input=False)
OURS: dict[str, tuple[Callable[[], SparseAutoencoder], str]] = {
    "ReLU": (lambda: ReLU(WIDTHS, F), "AutoEncoderNew"),
    "ReLU unit": (lambda: ReLU(WIDTHS, F, "unit"), "AutoEncoder"),
    "TopK": (lambda: TopK(WIDTHS, F, k=K), "AutoEncoderTopK"),
    "TopK not centred": (lambda: TopK(WIDTHS, F, k=K, refinements=OFF), "AutoEncoderTopK"),
    "BatchTopK": (lambda: BatchTopK(WIDTHS, F, k=K), "BatchTopKSAE"),
    "BatchTopK not centred": (lambda: BatchTopK(WIDTHS, F, k=K, refinements=OFF), "BatchTopKSAE"),
    "JumpReLU": (lambda: JumpReLU(WIDTHS, F), "JumpReluAutoEncoder"),
    "JumpReLU not centred": (lambda: JumpReLU(WIDTHS, F, refinements=OFF), "JumpReluAutoEncoder"),
    "Gated": (lambda: Gated(WIDTHS, F), "GatedAutoEncoder"),
    "Gated not centred": (lambda: Gated(WIDTHS, F, refinements=OFF), "GatedAutoEncoder"),
    "Matryoshka TopK": (lambda: Matryoshka(WIDTHS, F, mechanisms.TopK(K), groups=GROUPS), "AutoEncoderTopK"),
    "Matryoshka": (lambda: Matryoshka(WIDTHS, F, mechanisms.BatchTopK(K), groups=GROUPS), "MatryoshkaBatchTopKSAE"),
    "Matryoshka frequency": (
        lambda: Matryoshka(WIDTHS, F, mechanisms.BatchTopK(K), groups=GROUPS, order="frequency"),
        "BatchTopKSAE",
    ),
}
LAYOUT = LAYOUTS["dictionary_learning"]
assert isinstance(LAYOUT, WritableLayout)


def trained(build: Callable[[], SparseAutoencoder]) -> SparseAutoencoder:
    """As after a training: scaled, with biases and thresholds."""
    sae, generator = build(), torch.Generator().manual_seed(1)
    sae.reset_parameters(generator)
    sae.start_from({site: 3 * drawn(64, D, seed=7) + 1 for site in sae.widths.read}, "sqrt_d")
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return sae.eval()


@pytest.mark.parametrize("name", OURS)
def test_an_sae_of_ours_becomes_the_class_that_computes_the_same(name: str, tmp_path: Path) -> None:
    build, kind = OURS[name]
    sae = trained(build)
    LAYOUT.write(PortableSAE.of(sae, SOURCE), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["trainer"]["dict_class"] == kind
    assert config["trainer"]["lm_name"] == SITE.model
    assert config["trainer"]["layer"] == 6
    assert config["trainer"]["submodule_name"] == "resid_post_layer_6"
    assert all(isinstance(value, torch.Tensor) for value in torch.load(tmp_path / "ae.pt", weights_only=True).values())
    again = SavedSAE.open(tmp_path)
    x = 3 * drawn(64, D, seed=9) + 1
    latents = sae.encode(x)
    assert 0 < (latents > 0).float().mean() < 1
    torch.testing.assert_close(again.sae.encode(x), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.sae(x).x_hat, sae(x).x_hat, rtol=1e-5, atol=1e-5)
    assert [str(site) for site in again.sae.widths.read] == [str(SITE)]


def test_a_matryoshka_keeps_its_groups_and_can_be_trained_on(tmp_path: Path) -> None:
    state, _ = matryoshka()
    sae = SavedSAE.open(write(tmp_path, "MatryoshkaBatchTopKSAE", state)).sae
    assert isinstance(sae, Matryoshka)
    assert sae.group_sizes == GROUPS
    assert isinstance(sae.mechanism, mechanisms.BatchTopK)
    assert sae.mechanism.k == K


def test_at_the_threshold_itself_nothing_fires(tmp_path: Path) -> None:
    state, _ = matryoshka()
    state |= {"W_enc": torch.eye(D, F), "b_enc": torch.zeros(F), "b_dec": torch.zeros(D)}
    sae = SavedSAE.open(write(tmp_path, "MatryoshkaBatchTopKSAE", state)).sae
    at, above = torch.full((1, D), THRESHOLD), torch.full((1, D), THRESHOLD * 1.000001)
    assert not sae.encode(at).any()
    assert (sae.encode(above)[:, :D] > 0).all()


def test_a_threshold_that_was_never_set_is_said(tmp_path: Path) -> None:
    state, _ = topk(threshold=-1.0)
    path = write(tmp_path, "BatchTopKSAE", state)
    (said,) = LAYOUT.read(path).folded
    assert "never set" in said


def test_norms_that_their_library_would_fold_are_said(tmp_path: Path) -> None:
    state = {"encoder.weight": drawn(F, D), "encoder.bias": drawn(F), "decoder.weight": drawn(D, F), "bias": drawn(D)}
    (said,) = LAYOUT.read(write(tmp_path / "free", "AutoEncoder", state)).folded
    assert "normalize_decoder" in said
    state["decoder.weight"] = torch.nn.functional.normalize(state["decoder.weight"], dim=0)
    assert LAYOUT.read(write(tmp_path / "unit", "AutoEncoder", state)).folded == ()


def test_several_trainers_are_listed(tmp_path: Path) -> None:
    state, _ = topk()
    for number in range(11):
        write(tmp_path / str(number), "AutoEncoderTopK", state).rename(tmp_path / f"trainer_{number}")
    with refused(FormatError, r"holds 11 SAEs: trainer_0, trainer_1, .*trainer_7 and 3 more; name the folder"):
        SavedSAE.open(tmp_path)


def test_what_fires_is_not_guessed(tmp_path: Path) -> None:
    state, _ = batch_topk()
    with refused(FormatError, "AutoEncoderTopK or BatchTopKSAE, .*config.json"):
        SavedSAE.open(write(tmp_path, None, state))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dict_class": "IdentityDict"}, "dict_class is 'IdentityDict'"),
        ({"dict_class": 7}, "dict_class is 7, where str should be"),
        ({"dict_class": "AutoEncoder"}, "lacks the tensor 'bias'"),
        ({"layer": "twelve"}, "layer is 'twelve', where int should be"),
    ],
)
def test_a_config_of_something_else(change: dict[str, object], told: str, tmp_path: Path) -> None:
    state, _ = topk()
    path = write(tmp_path, "AutoEncoderTopK", state, **change)
    with refused(FormatError, re.escape(told)):
        SavedSAE.open(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"k": torch.tensor(3.0)}, "k is float32 of shape (), where whole numbers should be"),
        ({"k": torch.tensor(F + 1)}, f"k is {F + 1}"),
        ({"group_sizes": torch.tensor([1, 2])}, "adds up to 3"),
        ({"group_sizes": torch.tensor(1 + 2j)}, "complex64"),
        ({"more": torch.zeros(1)}, "'more'"),
        ({"W_dec": torch.zeros(1).expand(F, D)}, "'W_dec' is no plain tensor, or larger than what the file holds"),
        ({"note": "hello"}, "'note'"),
    ],
)
def test_tensors_of_something_else(change: dict[str, object], told: str, tmp_path: Path) -> None:
    state, _ = matryoshka(threshold=-1.0)
    path = write(tmp_path, "MatryoshkaBatchTopKSAE", {**state, **change})
    with refused(FormatError, re.escape(told)):
        SavedSAE.open(path)


def test_no_form_for_a_transcoder(tmp_path: Path) -> None:
    there = SiteRef(SITE.model, "mlp_out.6")
    sae = Transcoder(Widths({SITE: D}, {there: D}), F, mechanisms.TopK(K))
    source = Source(model=SITE.model, site=SITE.site, target_site=there.site)
    with refused(FormatError, "no class for a transcoder"):
        LAYOUT.write(PortableSAE.of(sae, source), tmp_path)
    assert not list(tmp_path.iterdir())
