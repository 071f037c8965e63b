"""The native export: no bit changes on a round trip, and every kind of damage has its message."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightsae.errors import ConfigError, FormatError
from lightsae.formats.files import hash_file
from lightsae.formats.native import describe_sae, load_sae, plain, save_sae, settings_hash
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import VARIANTS, Refinements, SiteRef, SparseAutoencoder, TopK, Widths, mechanisms

READ = {SiteRef("gpt2", "mlp_in.0"): 4, SiteRef("gpt2", "mlp_in.1"): 3}
WIDTHS = Widths(READ, {SiteRef("gpt2", "mlp_out.0"): 7})
# Functions: a mechanism belongs to one dictionary.
SETTINGS: dict[str, list[Callable[[], dict[str, Any]]]] = {
    "ReLU": [
        dict,
        lambda: {"decoder_norm": "unit"},
        lambda: {"p_end": 0.2, "p_begin": 0.1},
        lambda: {"refinements": Refinements(tilt=0.002)},
    ],
    "TopK": [lambda: {"k": 3}, lambda: {"k": 3, "k_aux": 4}, lambda: {"k": 3, "k_start": 9, "multi_k": 6}],
    "BatchTopK": [lambda: {"k": 3}],
    "GroupMax": [lambda: {"k": 3, "k_aux": 4}],
    "JumpReLU": [dict, lambda: {"penalty": "tanh", "start_l0": 6.0, "bandwidth": 0.5}, lambda: {"target_l0": 3.0}],
    "Gated": [dict],
    "MatchingPursuit": [
        lambda: {"residual_threshold": 0.3},
        lambda: {"residual_threshold": 0.0, "max_iterations": 4, "stop_on_duplicate_support": False},
    ],
    "Matryoshka": [
        lambda: {"mechanism": mechanisms.TopK(3), "groups": [5, 7]},
        lambda: {"mechanism": mechanisms.BatchTopK(3, k_aux=2), "order": "frequency", "detach_inner": True},
    ],
    "Transcoder": [
        lambda: {"mechanism": mechanisms.ReLU("unit")},
        lambda: {"mechanism": mechanisms.BatchTopK(3), "skip": True},
        lambda: {"mechanism": mechanisms.JumpReLU(target_l0=4.0)},
        lambda: {"mechanism": mechanisms.Gated()},
    ],
    "Crosscoder": [
        lambda: {"mechanism": mechanisms.ReLU(p_end=0.5)},
        lambda: {"mechanism": mechanisms.BatchTopK(3), "refinements": Refinements(aligned=True, prune=0.1)},
    ],
}
CASES = [(variant, make) for variant, all_ in SETTINGS.items() for make in all_]


def make(variant: str = "TopK", widths: Widths | None = None, **settings: object) -> SparseAutoencoder:
    if widths is None:
        several = WIDTHS if variant == "Transcoder" else Widths(READ, READ)
        widths = Widths.of(5) if variant == "MatchingPursuit" else several
    sae = VARIANTS[variant](widths, d_sae=12, **(settings or SETTINGS[variant][0]()))
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return sae.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_sae(make(), tmp_path / "topk")
    return tmp_path / "topk"


def edit(folder: Path, **changes: object) -> None:
    """Change what is said, with the hash that vouches for it."""
    path = folder / "sae.json"
    description = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(description | {"settings_sha256": settings_hash(description)}))


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the tensors and the hash that vouches for them."""
    import hashlib

    save_file(tensors, folder / "sae.safetensors")
    edit(folder, sha256=hashlib.sha256((folder / "sae.safetensors").read_bytes()).hexdigest())


def test_every_variant_has_a_case():
    assert set(VARIANTS) == set(SETTINGS)


@pytest.mark.parametrize(("variant", "settings"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_changes_no_bit(tmp_path, variant, settings, dtype):
    sae = make(variant, **settings()).to(dtype)
    save_sae(sae, tmp_path)
    loaded = load_sae(tmp_path)
    assert type(loaded) is type(sae)
    assert (plain(loaded.settings), loaded.widths) == (plain(sae.settings), sae.widths)
    assert type(loaded.mechanism) is type(sae.mechanism)
    assert loaded.mechanism.settings == sae.mechanism.settings
    assert not any(module.training for module in loaded.modules()), "what is loaded is for use"
    before, after = sae.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert {"input_scale", "output_scale"} <= after.keys()
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_loaded_dictionary_reconstructs_the_same_and_can_be_trained_on(tmp_path):
    sae = make("ReLU", Widths.of(6))
    save_sae(sae, tmp_path)
    loaded, x = load_sae(tmp_path), torch.randn(8, 6)
    assert torch.equal(loaded(x).x_hat, sae(x).x_hat)
    loaded(x).x_hat.sum().backward()
    torch.optim.SGD(loaded.parameters(), 0.1).step()
    assert torch.equal(load_sae(tmp_path).W_dec, sae.W_dec)


def test_loading_draws_no_random_number(saved):
    before = torch.get_rng_state()
    load_sae(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_bytes_of_the_tensors_depend_on_the_weights_alone(tmp_path):
    sae = make()
    save_sae(sae, tmp_path / "a", {"seed": 1})
    save_sae(sae, tmp_path / "elsewhere" / "b", {"seed": 2})
    first = (tmp_path / "a" / "sae.safetensors").read_bytes()
    assert first == (tmp_path / "elsewhere" / "b" / "sae.safetensors").read_bytes()
    with torch.no_grad():
        sae.b_dec[0] += 1
    save_sae(sae, tmp_path / "a")
    assert first != (tmp_path / "a" / "sae.safetensors").read_bytes()


def test_the_description_tells_shape_and_origin(tmp_path):
    save_sae(make(), tmp_path, {"tokens_seen": 5, "folder": Path("as/typed")})
    told = describe_sae(tmp_path)
    assert told["format_version"] == 1
    assert told["variant"] == "TopK"
    refinements = {"aligned": False, "second_step": 0.0, "tilt": 0.0, "prune": None}
    refinements |= {"centre_input": None, "token_norm": None}
    topk = {"k": 3, "k_aux": None, "k_start": None, "k_fall": 0.5, "multi_k": None}
    assert told["settings"] == {"d_sae": 12, **topk, "refinements": refinements}
    sites = [{"model": "gpt2", "site": "mlp_in.0", "width": 4}, {"model": "gpt2", "site": "mlp_in.1", "width": 3}]
    assert told["widths"] == {"read": sites, "predicted": sites}
    assert told["dtype"] == "float32"
    assert told["provenance"] == {"tokens_seen": 5, "folder": "as/typed"}
    assert str(tmp_path) not in (tmp_path / "sae.json").read_text()


def test_the_description_of_a_transcoder_tells_both_places(tmp_path):
    save_sae(make("Transcoder"), tmp_path)
    widths = describe_sae(tmp_path)["widths"]
    assert widths["predicted"] == [{"model": "gpt2", "site": "mlp_out.0", "width": 7}]
    assert [entry["width"] for entry in widths["read"]] == [4, 3]


def test_the_description_of_what_is_composed(tmp_path):
    mechanism = mechanisms.BatchTopK(3, k_aux=2)
    save_sae(make("Matryoshka", mechanism=mechanism, groups=[5, 7], refinements=Refinements(tilt=0.1)), tmp_path)
    settings = describe_sae(tmp_path)["settings"]
    told = {"name": "BatchTopK", "k": 3, "k_aux": 2, "k_start": None, "k_fall": 0.5, "multi_k": None}
    assert settings["mechanism"] == told
    assert (settings["groups"], settings["order"], settings["detach_inner"]) == ([5, 7], "index", False)
    assert settings["refinements"]["tilt"] == 0.1


def test_saving_replaces_an_earlier_export_and_nothing_else(saved):
    sae = make("ReLU")
    save_sae(sae, saved)
    assert torch.equal(load_sae(saved).W_enc, sae.W_enc)
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match=r"already holds other files \('notes.txt'\)"):
        save_sae(sae, saved)
    with pytest.raises(FormatError, match="is a file"):
        save_sae(sae, saved / "notes.txt")
    assert (saved / "notes.txt").read_text() == "mine"


def test_a_variant_of_ones_own_has_no_format(tmp_path):
    class Mine(TopK):
        pass

    with pytest.raises(FormatError, match="A Mine has no native format; known variants: ReLU, TopK"):
        save_sae(Mine(Widths.of(4), 8, 2), tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_earlier_export(tmp_path, full_disk):
    small, large = make(), TopK(Widths.of(64), 1024, 2)
    save_sae(small, tmp_path / "sae")
    with pytest.raises(ConfigError, match=r"Cannot write .*sae'"):
        save_sae(large, tmp_path / "sae")
    assert torch.equal(load_sae(tmp_path / "sae").W_dec, small.W_dec)
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


# -- damage ---------------------------------------------------------------------------------------------------------


def refused(folder: Path, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        load_sae(folder)
    message = str(caught.value)
    assert str(folder.parent) in message
    assert "\n" not in message
    assert len(message) < 500


def test_a_missing_folder_suggests_the_nearest(saved):
    refused(saved.parent / "topl", r"does not exist\. Did you mean 'topk'\?")


def test_a_folder_above_the_export_suggests_the_export(saved):
    with pytest.raises(FormatError, match=r"has no 'sae.json'\. Did you mean '.*/topk'\?"):
        load_sae(saved.parent)


def test_a_file_in_place_of_the_folder(saved):
    refused(saved / "sae.safetensors", r"is a file; name the folder")


@pytest.mark.parametrize("name", ["sae.json", "sae.safetensors"])
def test_a_missing_file(saved, name):
    (saved / name).unlink()
    refused(saved, f"has no '{name}'")


@pytest.mark.parametrize("keep", [0, 5, -1])
def test_truncated_tensors(saved, keep):
    path = saved / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(saved, "damaged or cut short")


def test_a_flipped_bit(saved):
    path = saved / "sae.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    refused(saved, "damaged or cut short")


def test_tensors_of_another_format_under_the_right_hash(saved):
    import hashlib

    (saved / "sae.safetensors").write_bytes(b"\x80\x04pickled")
    edit(saved, sha256=hashlib.sha256(b"\x80\x04pickled").hexdigest())
    refused(saved, "is not a safetensors file")


@pytest.mark.parametrize("text", ["", "{", '{"format_version": 1', "\xff"])
def test_broken_json(saved, text):
    (saved / "sae.json").write_bytes(text.encode("latin-1"))
    refused(saved, "is not valid JSON")


def test_json_that_is_no_description(saved):
    (saved / "sae.json").write_text("[1]")
    refused(saved, "holds a list")


@pytest.mark.parametrize("name", ["format_version", "variant", "settings", "widths", "sha256", "provenance"])
def test_a_missing_or_wrong_field(saved, name):
    edit(saved, **{name: None})
    refused(saved, f"'{name}' is missing")
    edit(saved, **{name: [1]})
    refused(saved, f"'{name}' is \\[1\\]")


def test_an_unknown_variant_suggests_the_nearest(saved):
    edit(saved, variant="TopKK")
    refused(saved, rf"variant is 'TopKK'; known are {', '.join(VARIANTS)}\. Did you mean 'TopK'\?")


def test_a_newer_format(saved):
    edit(saved, format_version=2)
    refused(saved, "format version 2, and this lightsae reads up to 1: pip install --upgrade lightsae")


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"d_sae": 12, "k": 3, "temperature": 1}},
        {"settings": {"d_sae": 12}},
        {"settings": {"d_sae": 12, "k": 99}},
        {"settings": {"d_sae": "many", "k": 3}},
        {"widths": {"read": [{"site": "x"}], "predicted": []}},
        {"widths": {"read": [7], "predicted": []}},
        {"widths": {"read": [{"model": "m", "site": "x", "width": "wide"}], "predicted": []}},
    ],
)
def test_settings_that_fit_no_dictionary(saved, changes):
    edit(saved, **changes)
    refused(saved, "do not make a TopK")


def test_widths_without_what_is_predicted(saved):
    edit(saved, widths={"read": []})
    refused(saved, "'predicted' is missing")


def test_a_missing_and_a_surplus_tensor(saved):
    tensors = {name: tensor.clone() for name, tensor in load_file(saved / "sae.safetensors").items()}
    rewrite(saved, {name: tensor for name, tensor in tensors.items() if name != "b_enc"})
    refused(saved, "lacks the tensor 'b_enc'")
    rewrite(saved, tensors | {"threshold": torch.zeros(1)})
    refused(saved, "holds a tensor 'threshold' that a TopK does not have")


@pytest.mark.parametrize("variant", ["BatchTopK", "Matryoshka"])
def test_without_its_threshold(tmp_path, variant):
    settings = {"k": 3} if variant == "BatchTopK" else {"mechanism": mechanisms.BatchTopK(3)}
    folder = tmp_path / "sae"
    save_sae(make(variant, **settings), folder)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "sae.safetensors").items()}
    del tensors["mechanism.threshold"]
    rewrite(folder, tensors)
    refused(folder, f"lacks 'mechanism.threshold', without which a {variant} would fire on everything")


@pytest.mark.parametrize(
    ("mechanism", "said"),
    [
        ({"name": "TopKK", "k": 3}, "TopKK"),
        ({"k": 3}, "name"),
        ({"name": "TopK"}, "'k'"),
        ({"name": "TopK", "k": 99}, "k is 99"),
        ({"name": "ReLU"}, "takes TopK or BatchTopK"),
        (None, ""),
        ("TopK", ""),
    ],
)
def test_a_mechanism_that_is_none(tmp_path, mechanism, said):
    folder = tmp_path / "sae"
    save_sae(make("Matryoshka"), folder)
    edit(folder, settings=describe_sae(folder)["settings"] | {"mechanism": mechanism})
    refused(folder, f"do not make a Matryoshka .*{said}")


@pytest.mark.parametrize("refinements", [{"aligend": True}, 7, {"second_step": -1.0}])
def test_refinements_that_are_none(saved, refinements):
    edit(saved, settings=describe_sae(saved)["settings"] | {"refinements": refinements})
    refused(saved, "do not make a TopK")


def test_a_tensor_of_another_shape(saved):
    edit(saved, settings={"d_sae": 13, "k": 3, "k_aux": None})
    refused(saved, r"has shape \(.*12.*\), but sae.json asks for \(.*13.*\)")


def test_a_device_that_is_not_there(saved):
    with pytest.raises(ConfigError, match="device is 'cuda'; no CUDA device is available, so write 'cpu'"):
        load_sae(saved, device="cuda")


def test_an_export_from_before_each_step_had_a_threshold_of_its_own(tmp_path):
    sae = VARIANTS["BatchTopK"](Widths.of(4), 8, k=2, refinements=Refinements(second_step=0.3)).eval()
    for name in ("first_threshold", "threshold"):
        getattr(sae.mechanism, name).fill_(0.1)
    save_sae(sae, tmp_path / "sae")
    tensors = load_file(tmp_path / "sae" / "sae.safetensors")
    del tensors["mechanism.first_threshold"]
    save_file(tensors, tmp_path / "sae" / "sae.safetensors")
    description = json.loads((tmp_path / "sae" / "sae.json").read_text())
    description["sha256"] = hash_file(tmp_path / "sae" / "sae.safetensors")
    (tmp_path / "sae" / "sae.json").write_text(json.dumps(description))
    x = torch.randn(20, 4)
    assert torch.equal(load_sae(tmp_path / "sae").encode(x), sae.encode(x))


# -- what somebody sent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"k": 4}},
        {"settings": {"refinements": {"second_step": 0.3}}},
        {"widths": {"predicted": []}},
        {"variant": "BatchTopK"},
        {"dtype": "bfloat16"},
        {"settings_sha256": "0" * 64},
        {"settings_sha256": 7},
    ],
)
def test_settings_that_were_changed_under_the_same_weights(saved, changes):
    path = saved / "sae.json"
    told = json.loads(path.read_text())
    for name, value in changes.items():
        told[name] = told[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(told))
    refused(saved, "was changed: the SHA-256 of variant, settings, widths and dtype")


def test_an_export_from_before_settings_had_a_hash(saved):
    path = saved / "sae.json"
    told = json.loads(path.read_text())
    whole = load_sae(saved)
    for name in ("settings_sha256", "dtype"):
        del told[name]
        path.write_text(json.dumps(told))
        assert torch.equal(load_sae(saved).W_dec, whole.W_dec)
    # What had no name then stands at its default.
    told["settings"] = {"d_sae": 12, "k": 3}
    path.write_text(json.dumps(told))
    assert load_sae(saved).settings == whole.settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("d_sae", True, "d_sae is True, where int should be"),
        ("d_sae", 12.0, "d_sae is 12.0, where int should be"),
        ("d_sae", 2**64, "where int should be"),
        ("d_sae", -12, "d_sae is -12"),
        ("k", "3", "k is '3', where int should be"),
        ("k", [3], r"k is \[3\], where int should be"),
        ("k", None, "k is None, where int should be"),
        ("k_fall", float("nan"), "k_fall is nan, where float should be"),
        ("k_fall", float("inf"), "k_fall is inf, where float should be"),
        ("k_aux", False, r"k_aux is False, where int \| None should be"),
        ("refinements", {"prune": "0"}, "prune is '0'"),
        ("refinements", {"aligned": 1}, "aligned is 1, where bool should be"),
        ("refinements", {"tilt": float("nan")}, "tilt is nan, where float should be"),
        ("refinements", [], r"refinements is \[\]"),
    ],
)
def test_settings_of_another_type(saved, name, value, said):
    edit(saved, settings=describe_sae(saved)["settings"] | {name: value})
    refused(saved, f"do not make a TopK .*{said}")


@pytest.mark.parametrize(
    ("name", "value"),
    [("groups", 5), ("groups", [5, True]), ("groups", ["5", 7]), ("order", "size"), ("detach_inner", 1)],
)
def test_settings_of_a_structure_of_another_type(tmp_path, name, value):
    folder = tmp_path / "sae"
    save_sae(make("Matryoshka"), folder)
    edit(folder, settings=describe_sae(folder)["settings"] | {name: value})
    refused(folder, f"do not make a Matryoshka .*{name} is ")


def test_a_mechanism_with_a_setting_of_another_type(tmp_path):
    folder = tmp_path / "sae"
    save_sae(make("Matryoshka"), folder)
    edit(folder, settings=describe_sae(folder)["settings"] | {"mechanism": {"name": "TopK", "k": 3.0}})
    refused(folder, "do not make a Matryoshka .*k is 3.0, where int should be")


@pytest.mark.parametrize(
    "site",
    [
        {"model": None, "site": "mlp_in.0", "width": 4},
        {"model": "gpt2", "site": 3, "width": 4},
        {"model": "gpt2", "site": "mlp_in.0", "width": 4.0},
        {"model": "gpt2", "site": "mlp_in.0", "width": True},
        {"model": "gpt2", "site": "mlp_in.0", "width": -4},
        {"model": "gpt2", "site": "mlp_in.1", "width": 3},
    ],
)
def test_a_site_that_is_none_or_stands_there_twice(saved, site):
    sites = describe_sae(saved)["widths"]["read"]
    edit(saved, widths={"read": [site, sites[1]], "predicted": [site, sites[1]]})
    refused(saved, "do not make a TopK")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["W_dec", "b_enc"])
def test_a_tensor_of_another_dtype_than_is_said(saved, name, dtype):
    tensors = load_file(saved / "sae.safetensors")
    rewrite(saved, tensors | {name: tensors[name].to(getattr(torch, dtype))})
    refused(saved, f"{name} is {dtype}, where float32 should be")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
@pytest.mark.parametrize("name", ["W_dec", "output_scale"])
def test_a_tensor_of_no_fractions(saved, name, dtype):
    tensors = load_file(saved / "sae.safetensors")
    rewrite(saved, tensors | {name: tensors[name].to(dtype)})
    refused(saved, f"{name} is {str(dtype).removeprefix('torch.')}, where float32 should be")


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", "", None, 3])
def test_a_dtype_that_is_none(saved, dtype):
    edit(saved, dtype=dtype)
    refused(saved, "dtype is .* there are float32, bfloat16, float16, float64")


def test_tensors_of_several_dtypes_where_none_is_said(saved):
    tensors = load_file(saved / "sae.safetensors")
    rewrite(saved, tensors | {"W_enc": tensors["W_enc"].half()})
    path = saved / "sae.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in told.items() if key not in ("dtype", "settings_sha256")}))
    refused(saved, "W_enc is float16, where float32 should be")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["W_dec", "W_enc", "b_enc", "b_dec", "input_scale", "mechanism.threshold"])
def test_a_value_that_is_no_number(tmp_path, name, value):
    folder = tmp_path / "sae"
    save_sae(make("BatchTopK"), folder)
    tensors = load_file(folder / "sae.safetensors")
    tensors[name].view(-1)[-1] = value
    rewrite(folder, tensors)
    refused(folder, f"{name} holds a NaN or an infinity")


@pytest.mark.parametrize("value", [0.0, -1.0])
@pytest.mark.parametrize("name", ["input_scale", "output_scale"])
def test_a_scale_that_is_none(saved, name, value):
    tensors = load_file(saved / "sae.safetensors")
    tensors[name][0] = value
    rewrite(saved, tensors)
    refused(saved, f"{name} is .*, and a scale is above 0")


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        ({"config": "data: &a [*a]"}, r"the alias \*a holds itself"),
        ({"config": "a: ["}, "is not YAML"),
        ({"config": "data: {model: [gpt2]}"}, r"model was \['gpt2'\]"),
        ({"config": "data: {skip_positions: many}"}, "skip_positions was 'many'"),
        ({"config": "data: {skip_positions: -1}"}, "skip_positions was -1"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens was 'no'"),
        ({"model_revision": 7}, "model_revision was 7"),
    ],
)
def test_a_training_that_cannot_have_been(saved, provenance, said):
    edit(saved, provenance=provenance)
    with pytest.raises(FormatError, match=said) as caught:
        SavedSAE.open(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "provenance", [{"config": "data: gpt2.yaml"}, {"config": "- a"}, {"config": None}, {"loss": float("nan")}]
)
def test_a_training_of_which_little_is_known(saved, provenance):
    edit(saved, provenance=provenance)
    assert SavedSAE.open(saved).provenance.model is None
    assert load_sae(saved).d_sae == 12
