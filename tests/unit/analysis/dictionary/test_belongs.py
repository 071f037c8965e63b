"""A feature dictionary belongs to weights and settings: the same weights under other settings are another SAE."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.fake_dictionary import fake_manifest, fake_tables
from lightsae.analysis.dictionary import FeatureDictionary, write_dictionary
from lightsae.analysis.dictionary.writer import manifest_id
from lightsae.errors import FormatError
from lightsae.formats.files import hash_file
from lightsae.formats.native import load_sae, save_sae, settings_hash
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import VARIANTS, SiteRef, SparseAutoencoder, Widths

FEATURES = 16


def make(variant: str = "TopK", **settings: Any) -> SparseAutoencoder:
    torch.manual_seed(0)
    widths = Widths.autoencoder(SiteRef("builtin", "resid_post.2"), 16)
    return VARIANTS[variant](widths, d_sae=FEATURES, **(settings or {"k": 2})).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An SAE and its dictionary."""
    save_sae(make(), tmp_path / "sae")
    manifest = fake_manifest(FEATURES) | {"sae": SavedSAE.open(tmp_path / "sae").entry}
    write_dictionary(tmp_path / "dictionary", fake_tables(FEATURES), manifest)
    return tmp_path


def change(path: Path, **settings: Any) -> None:
    """Change settings of an export, with the hash that vouches for them."""
    told = json.loads(path.read_text())
    told["settings"] |= settings
    path.write_text(json.dumps(told | {"settings_sha256": settings_hash(told)}))


def test_the_sae_itself_belongs_in_every_form(folder: Path) -> None:
    dictionary = FeatureDictionary.open(folder / "dictionary")
    for sae in (folder / "sae", load_sae(folder / "sae"), SavedSAE.open(folder / "sae"), make()):
        dictionary.check_belongs_to(sae)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 3}, "k 3 and not 2"),
        ({"k_aux": 1}, "k_aux 1 and not None"),
        ({"refinements": {"second_step": 0.3}}, "refinements {'aligned': False, 'second_step': 0.3"),
        ({"refinements": {"prune": 0.1}}, "refinements "),
    ],
)
def test_the_same_weights_under_other_settings_do_not(folder: Path, settings: dict[str, Any], said: str) -> None:
    dictionary = FeatureDictionary.open(folder / "dictionary")
    change(folder / "sae" / "sae.json", **settings)
    for sae in (folder / "sae", load_sae(folder / "sae")):
        with pytest.raises(FormatError, match=r"has the weights of the SAE .* was made for, but") as caught:
            dictionary.check_belongs_to(sae)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_same_weights_in_another_variant_do_not(folder: Path) -> None:
    relu = VARIANTS["ReLU"](make().widths, d_sae=FEATURES)
    relu.load_state_dict(make().state_dict())
    with pytest.raises(FormatError, match="but variant ReLU and not TopK: its latents are others"):
        FeatureDictionary.open(folder / "dictionary").check_belongs_to(relu.eval())


def test_what_an_older_export_leaves_out_stands_at_its_default(folder: Path) -> None:
    path = folder / "sae" / "sae.json"
    told = json.loads(path.read_text())
    del told["settings_sha256"]
    path.write_text(json.dumps(told | {"settings": {"d_sae": FEATURES, "k": 2}}))
    FeatureDictionary.open(folder / "dictionary").check_belongs_to(folder / "sae")
    path.write_text(json.dumps(told | {"settings": {"d_sae": FEATURES, "k": 3}}))
    with pytest.raises(FormatError, match="k 3 and not 2"):
        FeatureDictionary.open(folder / "dictionary").check_belongs_to(folder / "sae")


def _rewrite(folder: Path, **changes: Any) -> None:
    """Change the manifest of the dictionary, with the id that vouches for it."""
    path = folder / "dictionary" / "dictionary.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(manifest | {"id": manifest_id(manifest)}))


def test_a_dictionary_from_before_it_said_settings_is_told_by_weights(folder: Path) -> None:
    entry = SavedSAE.open(folder / "sae").entry
    _rewrite(folder, sae={name: value for name, value in entry.items() if name != "settings"})
    dictionary = FeatureDictionary.open(folder / "dictionary")
    dictionary.check_belongs_to(folder / "sae")
    change(folder / "sae" / "sae.json", k=3)
    dictionary.check_belongs_to(folder / "sae")


@pytest.mark.parametrize("settings", [{"k": "2"}, {"d_sae": FEATURES}, {"d_sae": FEATURES, "k": 2, "x": 1}])
def test_a_manifest_whose_settings_make_no_sae(folder: Path, settings: dict[str, Any]) -> None:
    _rewrite(folder, sae=SavedSAE.open(folder / "sae").entry | {"settings": settings})
    with pytest.raises(FormatError, match="settings and widths do not make a TopK"):
        FeatureDictionary.open(folder / "dictionary").check_belongs_to(folder / "sae")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sae": {"sha256": 5}}, "'sae' does not describe an SAE"),
        ({"sae": {"sha256": "a" * 64, "read": [1]}}, "'sae' does not describe an SAE"),
        ({"sae": {"sha256": "a" * 64, "read": [{"model": "m", "site": "s"}]}}, "'sae' does not describe an SAE"),
        ({"sae": {"sha256": "a" * 64, "predicted": 4}}, "'sae' does not describe an SAE"),
        ({"model": "gpt2"}, "'model' is 'gpt2', where a dict should be"),
        ({"labels": []}, r"'labels' is \[\], where a dict should be"),
        ({"extras": None}, "'extras' is missing, where a list should be"),
        ({"extras": ["index.html", "../../elsewhere"]}, "'extras' holds what is no name of a file beside it"),
        ({"extras": [".."]}, "'extras' holds what is no name"),
        ({"extras": ["/etc"]}, "'extras' holds what is no name"),
        ({"extras": [7]}, "'extras' holds what is no name"),
    ],
)
def test_a_manifest_of_other_types_is_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    _rewrite(folder, **changes)
    with pytest.raises(FormatError, match=said):
        FeatureDictionary.open(folder / "dictionary")


@pytest.mark.parametrize("limit", [0, -1, True, "3", None, 2.5])
def test_a_limit_of_patterns_that_is_none(folder: Path, limit: object) -> None:
    _rewrite(folder, labels={"offline": {"most_patterns": limit}})
    with pytest.raises(FormatError, match=r"labels\.offline\.most_patterns is"):
        _ = FeatureDictionary.open(folder / "dictionary").label_limit


@pytest.mark.parametrize("text", ["NaN", "1e999", '"\\ud800"', "[" * 5000])
def test_a_manifest_that_cannot_be_hashed_is_refused_and_not_traced_back(folder: Path, text: str) -> None:
    path = folder / "dictionary" / "dictionary.json"
    path.write_text(path.read_text().replace('"schema_version"', f'"more": {text}, "schema_version"'))
    with pytest.raises(FormatError, match="is not valid JSON"):
        FeatureDictionary.open(folder / "dictionary")


def test_a_table_with_damage_under_the_right_hash_is_one_line(folder: Path) -> None:
    path = folder / "dictionary" / "features.parquet"
    whole, said = path.read_bytes(), []
    for place in range(8, len(whole) - 600, len(whole) // 40):
        path.write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
        files = json.loads((folder / "dictionary" / "dictionary.json").read_text())["files"]
        _rewrite(folder, files=files | {path.name: hash_file(path)})
        try:
            FeatureDictionary.open(folder / "dictionary").to_pandas()
        except FormatError as error:
            said.append(str(error))
    assert len(said) > 20
    assert not any("\n" in message for message in said)
