"""What readers of published layouts refuse, by name, and what they say of what they folded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.layout_files import D, F, drawn, gemma_scope_2, llama_scope, llama_scope_r1, llamascopium, pickled
from lightsae.errors import FormatError
from lightsae.formats.layouts import PortableSAE, layout_of
from lightsae.formats.saved_sae import SavedSAE

WEIGHTS = "sae_weights.safetensors"


def read(path: Path) -> PortableSAE:
    return layout_of(path).read(path)


def refused(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        SavedSAE.open(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("tensors", "path", "kind"),
    [
        ({"w_enc": (D, F), "w_dec": (F, 3, D)}, "clt/width_262k_l0_medium/layer_0.safetensors", "cross-layer"),
        ({"w_enc": (D, F), "w_dec": (F, 3, D)}, "elsewhere/params.safetensors", "cross-layer transcoder"),
        ({"w_enc": (4, D, F), "w_dec": (F, 4, D)}, "elsewhere/params.safetensors", "crosscoder"),
        ({"w_enc": (D, F), "w_dec": (F, D)}, "crosscoder/layer_7_13/params_layer_0.safetensors", "crosscoder"),
    ],
)
def test_what_reads_several_layers_of_gemma_3_is_named(
    tensors: dict[str, tuple[int, ...]], path: str, kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "gemma-scope-2-1b-pt" / path
    file.parent.mkdir(parents=True)
    save_file({name: drawn(*shape) for name, shape in tensors.items()}, file)
    for given in (file, file.parent):
        assert f"is a {kind}" in refused(given)


def test_a_skip_connection_that_config_json_says_is_missed(tmp_path: Path) -> None:
    path, _ = gemma_scope_2.make(tmp_path, "a", affine_connection=True, **gemma_scope_2.MLP)
    assert "lacks affine_skip_connection, which" in refused(path)


def test_another_architecture_of_gemma_scope_2_is_refused(tmp_path: Path) -> None:
    path, _ = gemma_scope_2.make(tmp_path, "a", l0=3)
    change(path / "config.json", architecture="topk")
    assert "architecture is 'topk', where 'jump_relu' should be" in refused(path)


@pytest.mark.parametrize("kind", ["crosscoder", "clt", "lorsa", "molt", "new"])
def test_other_kinds_of_llamascopium_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path, _ = llamascopium.make(tmp_path, "relu")
    change(path / "config.json", sae_type=kind)
    assert f"sae_type is {kind!r}" in refused(path)


def test_a_distributed_checkpoint_says_how_to_be_saved(tmp_path: Path) -> None:
    path, _ = llamascopium.make(tmp_path, "relu")
    (path / WEIGHTS).unlink()
    (path / "sae_weights.dcp").mkdir()
    assert "save it again by Llamascopium in one process" in refused(path)


Make = Callable[..., tuple[Path, Any]]
MAKERS: dict[str, tuple[Make, dict[str, Any], str]] = {
    "llama_scope": (llama_scope.make, {}, "hyperparams.json"),
    "llama_scope_r1": (llama_scope_r1.make, {"path": "a", "norm": 3.0}, "config.json"),
    "llamascopium": (llamascopium.make, {"act_fn": "jumprelu"}, "config.json"),
}


@pytest.fixture(params=MAKERS)
def openmoss(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    make, options, settings = MAKERS[request.param]
    path, _ = make(tmp_path, **options)
    return path, path / settings


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"use_glu_encoder": True}, "gated linear units are not read"),
        ({"norm_activation": "token-wise"}, "scales by what is read at the moment"),
        ({"norm_activation": "batch-wise"}, "scales by what is read at the moment"),
        ({"norm_activation": "other"}, "norm_activation is 'other', which is not known"),
        ({"act_fn": "layertopk"}, "act_fn is 'layertopk'"),
        ({"act_fn": 3}, "act_fn is 3, where str should be"),
        ({"use_decoder_bias": False}, "which an SAE of this layout does not have"),
        ({"hook_point_in": 7}, "hook_point_in is 7, where str should be"),
    ],
)
def test_settings_without_a_form_of_ours_are_refused(
    openmoss: tuple[Path, Path], setting: dict[str, Any], said: str
) -> None:
    path, settings = openmoss
    change(settings, **setting)
    assert said in refused(path)


@pytest.mark.parametrize("norm", [0.0, -1.0, 1e-30])
def test_a_norm_that_none_can_be_is_refused(norm: float, tmp_path: Path) -> None:
    path, _ = llama_scope.make(tmp_path)
    change(path / "hyperparams.json", dataset_average_activation_norm={"in": norm})
    assert "dataset_average_activation_norm.in is" in refused(path)


def test_a_norm_that_is_missing_is_named(tmp_path: Path) -> None:
    path, _ = llamascopium.make(tmp_path, "relu")
    tensors = load_file(path / WEIGHTS)
    del tensors[f"dataset_average_activation_norm.{llamascopium.HOOK}"]
    save_file(tensors, path / WEIGHTS)
    assert f"lacks 'dataset_average_activation_norm.{llamascopium.HOOK}'" in refused(path)


def test_a_scale_that_nothing_says_is_asked_for(tmp_path: Path) -> None:
    path, _ = llama_scope_r1.make(tmp_path, "mine/L5R", norm=None)
    assert "keep the folders as on the Hub" in refused(path)


def test_a_decoder_row_of_zeros_cannot_be_divided_by(tmp_path: Path) -> None:
    path, _ = llamascopium.make(tmp_path, "jumprelu")
    tensors = load_file(path / WEIGHTS)
    tensors["W_D"][3] = 0
    save_file(tensors, path / WEIGHTS)
    assert "one row is 0" in refused(path)


def test_what_was_folded_is_said(tmp_path: Path) -> None:
    path, _ = llamascopium.make(tmp_path, "batchtopk")
    folded = read(path).folded
    assert [any(word in note for note in folded) for word in ("a batch", "decoder's norms", "scale 0.816")] == [
        True
    ] * 3
    assert SavedSAE.open(path).provenance.values["folded"] == list(folded)


def test_a_qwen_scope_sae_asks_for_k_and_for_one_layer(tmp_path: Path) -> None:
    path, _ = pickled.qwen(tmp_path, "mine", 5)
    assert "does not say how many latents a token keeps" in refused(path)
    (path.parent / "layer2.sae.pt").write_bytes(path.read_bytes())
    assert "holds 2 SAEs: layer2.sae.pt, layer18.sae.pt; name the file of one" in refused(path.parent)


def test_an_unknown_entry_of_a_pickle_is_refused(tmp_path: Path) -> None:
    path, _ = pickled.linear(tmp_path, pickled.R1, "")
    torch.save(torch.load(path, weights_only=True) | {"activation": "topk"}, path)
    assert "holds 'activation'" in refused(path)
