"""sparsify beyond the contract: what is written for SAEs of ours, what is refused, and names of places."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.errors import refused
from helpers.layout_files import D, F, drawn
from helpers.layout_files.sparsify import K, state, write
from lightsae.errors import FormatError
from lightsae.formats.layouts import LAYOUTS, PortableSAE, Source, WritableLayout
from lightsae.formats.layouts.sparsify_hookpoints import hookpoint_of, site_of
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import (
    BatchTopK,
    GroupMax,
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

MODEL = "EleutherAI/pythia-70m"
HERE, THERE = SiteRef(MODEL, "mlp_in.2"), SiteRef(MODEL, "mlp_out.2")
SELF, ACROSS = Widths.autoencoder(THERE, D), Widths({HERE: D}, {THERE: D})
OFF = Refinements(centre_input=False)
OURS: dict[str, Callable[[], SparseAutoencoder]] = {
    "TopK": lambda: TopK(SELF, F, k=K),
    "TopK not centred": lambda: TopK(SELF, F, k=K, refinements=OFF),
    "GroupMax": lambda: GroupMax(SELF, F, k=K),
    "Matryoshka TopK": lambda: Matryoshka(SELF, F, mechanisms.TopK(K)),
    "Transcoder": lambda: Transcoder(ACROSS, F, mechanisms.TopK(K)),
    "Transcoder GroupMax, skip": lambda: Transcoder(ACROSS, F, mechanisms.GroupMax(K), skip=True),
}
LAYOUT = LAYOUTS["sparsify"]
assert isinstance(LAYOUT, WritableLayout)


def source_of(sae: SparseAutoencoder) -> Source:
    (read,), (predicted,) = sae.widths.read, sae.widths.predicted
    return Source(model=MODEL, site=read.site, target_site=None if read == predicted else predicted.site)


def trained(build: Callable[[], SparseAutoencoder]) -> SparseAutoencoder:
    sae, generator = build(), torch.Generator().manual_seed(1)
    sae.reset_parameters(generator)
    sae.start_from({HERE: 3 * drawn(64, D, seed=7) + 1, THERE: 9 * drawn(64, D, seed=8)}, "sqrt_d")
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return sae.eval()


@pytest.mark.parametrize("name", OURS)
def test_what_is_written_of_ours_computes_the_same(name: str, tmp_path: Path) -> None:
    sae = trained(OURS[name])
    LAYOUT.write(PortableSAE.of(sae, source_of(sae)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "layers.2.mlp"]
    config = json.loads((tmp_path / "layers.2.mlp" / "cfg.json").read_text())
    assert (config["num_latents"], config["d_in"], config["k"]) == (F, D, K)
    again = SavedSAE.open(tmp_path / "layers.2.mlp")
    x = 3 * drawn(64, D, seed=9) + 1
    torch.testing.assert_close(again.sae.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.sae(x).x_hat, sae(x).x_hat, rtol=1e-5, atol=1e-5)
    assert again.sae.widths == sae.widths


def test_without_a_hookpoint_the_folder_is_the_saes_own(tmp_path: Path) -> None:
    sae = trained(OURS["TopK"])
    LAYOUT.write(PortableSAE.of(sae, Source(model=MODEL, site="attn_z.2")), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cfg.json", "sae.safetensors"]


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: ReLU(SELF, F), "sparsify holds TopK and GroupMax SAEs, and this one's activation is relu"),
        (lambda: BatchTopK(SELF, F, k=K), "this one's activation is jumprelu"),
        (
            lambda: Transcoder(Widths({HERE: D}, {THERE: D + 1}), F, mechanisms.TopK(K)),
            "this transcoder reads 6 and predicts 7",
        ),
    ],
)
def test_what_has_no_such_form(build: Callable[[], SparseAutoencoder], told: str, tmp_path: Path) -> None:
    sae = build()
    with refused(FormatError, told):
        LAYOUT.write(PortableSAE.of(sae, source_of(sae)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"cross_layer": 4}, "has cross_layer: a cross-layer transcoder"),
        ({"coalesce_topk": "none"}, "has coalesce_topk: a cross-layer transcoder"),
        ({"signed": True}, "signed is true"),
        ({"activation": "relu"}, "activation is 'relu'; sparsify has topk and groupmax"),
        ({"skip_connection": True}, "skip_connection is true and transcode is not"),
        ({"skip_connection": True, "transcode": True}, "lacks the tensor 'W_skip'"),
        ({"k": None}, "does not say k"),
        ({"k": 2.5}, "k is 2.5, where int should be"),
        ({"k": F + 1}, f"k is {F + 1}"),
        ({"activation": "groupmax", "k": 5}, "k is 5, and 16 latents"),
        ({"d_in": D + 1}, "d_in is 7, and "),
        ({"num_latents": 2 * F}, "the number of latents is 32, and "),
        ({"transcode": "yes"}, "transcode is 'yes', where bool should be"),
    ],
)
def test_a_config_of_something_else(config: dict[str, object], told: str, tmp_path: Path) -> None:
    path = write(tmp_path, "layers.3", state(), **config)
    with refused(FormatError, re.escape(told)):
        SavedSAE.open(path)


def test_a_tensor_too_many(tmp_path: Path) -> None:
    with refused(FormatError, "holds 'W_skip', which an SAE of this layout does not have"):
        SavedSAE.open(write(tmp_path, "layers.3", {**state(), "W_skip": torch.zeros(D, D)}))


def test_hookpoints_of_a_run_are_listed(tmp_path: Path) -> None:
    for layer in (10, 2, 1):
        write(tmp_path, f"layers.{layer}", state())
    with refused(FormatError, r"holds 3 SAEs: layers\.1, layers\.2, layers\.10; name the folder of one\."):
        SavedSAE.open(tmp_path / "run")


@pytest.mark.parametrize(
    ("model", "hookpoint", "transcode"),
    [
        ("openai-community/gpt2", "h.0", False),
        ("openai-community/gpt2", "h.11.mlp", True),
        ("EleutherAI/pythia-70m", "layers.3", True),
        ("EleutherAI/pythia-70m", "embed_in", False),
        ("google/gemma-2-2b", "layers.3.mlp", False),
        ("google/gemma-2-2b", "layers.3.post_feedforward_layernorm", False),
        (None, "layers.3.mlp", False),
        ("Qwen/Qwen3-8B", "layers.3.self_attn.q_proj", True),
    ],
)
def test_names_come_back(model: str | None, hookpoint: str, transcode: bool) -> None:
    site = site_of(hookpoint, "input" if transcode else "output", model)
    target = site_of(hookpoint, "output", model) if transcode else None
    assert hookpoint_of(Source(model=model, site=site, target_site=target)) == hookpoint


@pytest.mark.parametrize(
    ("site", "target", "expected"),
    [
        ("resid_pre.4", None, "layers.3"),
        ("resid_pre.0", None, None),
        ("model.layers.4.mlp.output", None, "layers.4.mlp"),
        ("mlp_act.4", None, None),
        ("mlp_in.4", "mlp_out.5", None),
        ("resid_post.4", "mlp_out.5", None),
        ("mlp_in.4", None, None),
        ("mlp_in.4", "predicted activations", None),
        (None, None, None),
    ],
)
def test_the_module_of_a_site(site: str | None, target: str | None, expected: str | None) -> None:
    assert hookpoint_of(Source(model=MODEL, site=site, target_site=target)) == expected
