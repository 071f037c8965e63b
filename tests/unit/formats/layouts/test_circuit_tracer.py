"""Sets of circuit-tracer: a layer at a time, built up in one folder; what it has no form for is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lightsae.errors import FormatError
from lightsae.formats.convert import convert
from lightsae.formats.layouts.circuit_tracer import CircuitTracer
from lightsae.formats.native import save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import ReLU, SiteRef, SparseAutoencoder, TopK, Transcoder, Widths, mechanisms

MODEL, D, F = "openai-community/gpt2", 6, 16


def transcoder(
    layer: int = 0, mechanism: Any = None, read: str = "mlp_in", model: str = MODEL, d_out: int = D, **more: Any
) -> SparseAutoencoder:
    """A transcoder with weights, centre and scales of its own."""
    widths = Widths({SiteRef(model, f"{read}.{layer}"): D}, {SiteRef(model, f"mlp_out.{layer}"): d_out})
    sae = Transcoder(widths, F, mechanism or mechanisms.BatchTopK(3), **more).eval()
    generator = torch.Generator().manual_seed(layer)
    with torch.no_grad():
        for value in sae.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
        sae.get_buffer("input_centre").copy_(torch.randn(D, generator=generator))
        sae.input_scale.fill_(0.3)
        sae.output_scale.fill_(2.0)
        if (threshold := sae.state_dict().get("mechanism.threshold")) is not None:
            threshold.fill_(0.5)
    return sae


@pytest.mark.parametrize("mechanism", [mechanisms.BatchTopK(3), mechanisms.ReLU(), mechanisms.JumpReLU()])
@pytest.mark.parametrize("skip", [False, True])
def test_a_set_is_built_a_layer_at_a_time(mechanism: Any, skip: bool, tmp_path: Path) -> None:
    saes = [transcoder(layer, mechanism, skip=skip) for layer in range(3)]
    for layer, sae in enumerate(saes):
        done = convert(sae, "circuit_tracer", tmp_path / "set")
        assert done.path == tmp_path / "set" / f"layer_{layer}.safetensors"
        assert done.difference.latents < 1e-5
        assert done.difference.predictions < 1e-5
        assert done.difference.other_firings == 0
        assert "the centre of what is read into b_enc" in done.folded
    names = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert names == ["config.yaml", "layer_0.safetensors", "layer_1.safetensors", "layer_2.safetensors"]
    config = yaml.safe_load((tmp_path / "set" / "config.yaml").read_text())
    assert (config["model_name"], config["model_kind"]) == (MODEL, "transcoder_set")
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("mlp.hook_in", "hook_mlp_out")
    x = torch.randn(64, D, generator=torch.Generator().manual_seed(5))
    for layer, sae in enumerate(saes):
        file = tmp_path / "set" / f"layer_{layer}.safetensors"
        # The formulas of the layout, on raw activations.
        w = load_file(file)
        z = x @ w["W_enc"].T + w["b_enc"]
        latents = torch.where(z > w.get("activation_function.threshold", torch.zeros(F)), z, 0).relu()
        y = latents @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if skip else 0)
        torch.testing.assert_close(latents, sae.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(y, sae(x).x_hat, rtol=1e-5, atol=1e-5)
        assert list(SavedSAE.open(file).sae.widths.predicted) == [SiteRef(MODEL, f"mlp_out.{layer}")]


def test_a_layer_that_is_there_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    for layer in range(2):
        convert(transcoder(layer), "circuit_tracer", tmp_path / "set")
    first = (tmp_path / "set" / "layer_0.safetensors").read_bytes()
    before = (tmp_path / "set" / "layer_1.safetensors").read_bytes()
    (tmp_path / "link.safetensors").hardlink_to(tmp_path / "set" / "layer_1.safetensors")
    convert(transcoder(1, mechanisms.ReLU()), "circuit_tracer", tmp_path / "set")
    assert (tmp_path / "set" / "layer_0.safetensors").read_bytes() == first
    assert (tmp_path / "set" / "layer_1.safetensors").read_bytes() != before
    assert (tmp_path / "link.safetensors").read_bytes() == before


def test_the_folder_of_a_set_lists_its_layers(tmp_path: Path) -> None:
    for layer in (0, 1, 4):
        convert(transcoder(layer), "circuit_tracer", tmp_path / "set")
    with pytest.raises(FormatError, match=r"of layers 0, 1, 4; name the file of one, such as '.*layer_0\.safetensors'"):
        SavedSAE.open(tmp_path / "set")
    for file in (tmp_path / "set").glob("layer_*"):
        file.unlink()
    with pytest.raises(FormatError, match=r"no layer_L\.safetensors; fetch those"):
        SavedSAE.open(tmp_path / "set")


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (lambda: transcoder(mechanism=mechanisms.TopK(3)), "circuit-tracer has no TopK"),
        (lambda: transcoder(mechanism=mechanisms.Gated()), "circuit-tracer has no Gated"),
        (lambda: transcoder(d_out=7), "one width, and this one reads 6 and predicts 7"),
        (lambda: transcoder(model=""), "reads what is not known and predicts"),
        (lambda: TopK(Widths.autoencoder(SiteRef(MODEL, "resid_post.1"), D), F, k=3), "circuit-tracer has no TopK"),
        (lambda: ReLU(Widths.autoencoder(SiteRef(MODEL, "mlp_out.1"), D), F), "this SAE predicts what it reads"),
        (lambda: two_layers(), "reads mlp_in.1 and predicts mlp_out.2; name sites"),
    ],
)
def test_what_it_has_no_form_for_is_refused(sae: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        convert(sae(), "circuit_tracer", tmp_path / "set")
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def two_layers() -> SparseAutoencoder:
    widths = Widths({SiteRef(MODEL, "mlp_in.1"): D}, {SiteRef(MODEL, "mlp_out.2"): D})
    return Transcoder(widths, F, mechanisms.ReLU())


def test_other_sites_of_a_layer_have_hooks_too(tmp_path: Path) -> None:
    file = convert(transcoder(2, read="resid_pre"), "circuit_tracer", tmp_path / "set").path
    assert yaml.safe_load((tmp_path / "set" / "config.yaml").read_text())["feature_input_hook"] == "hook_resid_pre"
    assert list(SavedSAE.open(file).sae.widths.read) == [SiteRef(MODEL, "resid_pre.2")]


def test_a_set_is_of_one_model_and_one_pair_of_hooks(tmp_path: Path) -> None:
    convert(transcoder(), "circuit_tracer", tmp_path / "set")
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "set").iterdir())
    for other, name in ((transcoder(1, model="other/model"), "model_name"), (transcoder(1, read="resid_pre"), "hook")):
        with pytest.raises(FormatError, match=f"{name}.* in the config.yaml that is there"):
            convert(other, "circuit_tracer", tmp_path / "set")
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "set").iterdir()) == before
    save_sae(transcoder(), tmp_path / "native")
    with pytest.raises(FormatError, match=r"holds other files \('sae.json'\)"):
        convert(transcoder(), "circuit_tracer", tmp_path / "native")


def test_cross_layer_transcoders_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model_kind: cross_layer_transcoder\nmodel_name: a/b\n")
    save_file({"W_enc_0": torch.zeros(F, D)}, tmp_path / "W_enc_0.safetensors")
    for path in (tmp_path, tmp_path / "W_enc_0.safetensors"):
        assert CircuitTracer().problem(path) is None
        with pytest.raises(FormatError, match="is of a cross-layer transcoder"):
            SavedSAE.open(path)


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"model_name": 7}, {}, "model_name is 7"),
        ({"feature_input_hook": None}, {}, "feature_input_hook is None"),
        ({}, {"activation_function.threshold": -torch.ones(F)}, "a threshold is below 0"),
        ({}, {"log_thresholds": torch.zeros(F)}, "holds 'log_thresholds'"),
        ({}, {"W_skip": torch.zeros(D, D + 1)}, r"W_skip has shape \(6, 7\)"),
        ({}, {"W_enc": torch.zeros(D, F)}, "has shape"),
    ],
)
def test_a_set_that_is_none(config: Any, tensors: Any, message: str, tmp_path: Path) -> None:
    convert(transcoder(), "circuit_tracer", tmp_path / "set")
    said = yaml.safe_load((tmp_path / "set" / "config.yaml").read_text()) | config
    (tmp_path / "set" / "config.yaml").write_text(yaml.safe_dump(said))
    file = tmp_path / "set" / "layer_0.safetensors"
    save_file(load_file(file) | tensors, file)
    with pytest.raises(FormatError, match=message) as caught:
        SavedSAE.open(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_another_config_is_not_its(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "layer_0.safetensors")
    for text, problem in ((None, "there is no config.yaml beside it"), ("a: [", "its config.yaml cannot be read")):
        if text is not None:
            (tmp_path / "config.yaml").write_text(text)
        assert CircuitTracer().problem(tmp_path / "layer_0.safetensors") == problem
    (tmp_path / "config.yaml").write_text("data: {model: builtin}\n")
    assert "no model_kind" in str(CircuitTracer().problem(tmp_path))
