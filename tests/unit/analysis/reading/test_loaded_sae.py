"""Where a dictionary comes from: what its export tells of model and corpus, and what may take its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightsae.analysis.reading.compatibility import check_model
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.errors import ConfigError, FormatError, ModelError, SiteError
from lightsae.formats.native import save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm import LanguageModel
from lightsae.sae import ReLU, SiteRef, Transcoder, Widths
from lightsae.sae.mechanisms import TopK

Export = Callable[..., str]


@pytest.fixture
def export(make_model: Callable[..., Path], tiny_corpus: Path, tmp_path: Path) -> Export:
    """Save a dictionary as a run does, and return its folder; keywords change what `data:` says, None leaves it out."""

    def save(widths: Widths | None = None, provenance: dict[str, Any] | None = None, **data: Any) -> str:
        model = str(make_model())
        given = {"model": model, "dataset": str(tiny_corpus), "context_size": 16, "validation_fraction": 0.2} | data
        told = {"config": yaml.safe_dump({"data": {k: v for k, v in given.items() if v is not None}})}
        sae = ReLU(widths or Widths.autoencoder(SiteRef(model, "resid_post.0"), 12), d_sae=6)
        save_sae(sae, tmp_path / "sae", told | (provenance or {}))
        return str(tmp_path / "sae")

    return save


def load(folder: str, **settings: Any) -> LoadedSAE:
    return LoadedSAE.load(folder, TextSettings(**settings), whole_model=False)


@pytest.mark.parametrize(
    ("trained", "settings", "loaded"),
    [
        (None, {}, (None, "cpu", None, None)),
        ("4bit", {}, ("4bit", "cpu", None, None)),
        ("4bit", {"quantization": "none"}, (None, "cpu", None, None)),
        ("4bit", {"quantization": "8bit", "device": "meta"}, ("8bit", "meta", None, None)),
        (None, {"device_map": {"": "cpu"}}, (None, None, {"": "cpu"}, "cpu")),
    ],
)
def test_the_model_is_rounded_and_placed(
    export: Export, monkeypatch: pytest.MonkeyPatch, trained: str | None, settings: dict[str, Any], loaded: Any
) -> None:
    names = ("quantization", "device", "device_map", "output_device")
    asked: list[tuple[Any, ...]] = []

    class Asked(Exception):
        pass

    def load_model(name: str, **told: Any) -> None:
        asked.append(tuple(told[one] for one in names))
        raise Asked

    monkeypatch.setattr(LanguageModel, "from_pretrained", load_model)
    monkeypatch.setattr(SavedSAE, "of", lambda sae, _: SavedSAE.open(sae))
    with pytest.raises(Asked):
        load(export(quantization=trained), **settings)
    assert asked == [loaded]


def test_a_device_map_of_no_kind() -> None:
    with pytest.raises(ConfigError, match=r"^device_map is 'here'; write auto"):
        TextSettings(device_map="here")


def test_everything_follows_from_the_export(export: Export, make_model: Callable[..., Path], tiny_corpus: Path) -> None:
    folder = export(skip_positions=3, skip_special_tokens=True, prepend_bos=False)
    loaded = load(folder)
    model = str(make_model())
    assert list(loaded.models) == [model]
    assert loaded.main_model is loaded.models[model]
    assert loaded.reading.sites == (SiteRef(model, "resid_post.0"),)
    assert (loaded.reading.skip_positions, loaded.reading.skip_special) == (3, True)
    assert loaded.reading.rows_at_once == 8192 // 16
    corpus = loaded.corpus
    assert (corpus.dataset, corpus.context_size, corpus.validation_fraction) == (str(tiny_corpus), 16, 0.2)
    assert corpus.prepend_bos is False
    assert not loaded.sae.training
    described = json.loads((Path(folder) / "sae.json").read_text())
    assert loaded.saved.entry["sha256"] == described["sha256"]
    assert loaded.saved.entry["variant"] == "ReLU"


def test_settings_win_over_the_export(export: Export) -> None:
    loaded = load(export(), context_size=8, model_batch_tokens=80, num_workers=0, text_column="body")
    assert (loaded.corpus.context_size, loaded.corpus.text_column, loaded.corpus.num_workers) == (8, "body", 0)
    assert loaded.reading.rows_at_once == 10
    assert load(export(), model_batch_tokens=1).reading.rows_at_once == 1


def test_of_another_corpus_only_the_form_of_rows_is_kept(export: Export, tmp_path: Path) -> None:
    folder = export(text_column="body", validation_fraction=0.3, prepend_bos=False, dataset_split="all")
    other = load(folder, dataset=str(tmp_path / "mine.jsonl")).corpus
    assert (other.dataset, other.context_size, other.prepend_bos) == (str(tmp_path / "mine.jsonl"), 16, False)
    # What was said of the old corpus does not hold for another.
    assert (other.text_column, other.validation_fraction, other.dataset_split) == ("text", 0.05, "train")
    kept = load(folder).corpus
    assert (kept.text_column, kept.validation_fraction, kept.dataset_split) == ("body", 0.3, "all")


def test_a_model_elsewhere_keeps_the_name_that_it_was_trained_under(
    export: Export, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    trained = SiteRef("gone/model", "resid_post.0")
    folder = export(Widths.autoencoder(trained, 12), model="gone/model")
    with pytest.raises(ModelError, match="gone/model"):
        load(folder)
    loaded = load(folder, model=str(make_model()))
    assert list(loaded.models) == ["gone/model"]
    assert loaded.main_model.name == "gone/model"
    rows = torch.zeros(1, 4, dtype=torch.long)
    assert loaded.main_model.capture(rows, ["resid_post.0"])["resid_post.0"].shape == (1, 4, 12)


def test_sites_that_are_predicted_are_in_memory_too(make_model: Callable[..., Path], export: Export) -> None:
    model = str(make_model())
    folder = Path(export())
    told = json.loads((folder / "sae.json").read_text())["provenance"]
    widths = Widths({SiteRef(model, "mlp_in.0"): 12}, {SiteRef(model, "mlp_out.1"): 12})
    save_sae(Transcoder(widths, d_sae=6, mechanism=TopK(2)), folder, told)
    loaded = load(str(folder))
    assert loaded.reading.sites == (SiteRef(model, "mlp_in.0"),)
    assert loaded.main_model.capture(torch.zeros(1, 4, dtype=torch.long), ["mlp_out.1"])
    assert not hasattr(loaded.main_model.model, "lm_head")
    whole = LoadedSAE.load(str(folder), TextSettings())
    assert whole.main_model.logits(torch.zeros(1, 4, dtype=torch.long)).shape[:2] == (1, 4)


@pytest.mark.parametrize(
    ("data", "settings", "error", "message"),
    [
        ({"dataset": None}, {}, ConfigError, "dataset is missing"),
        ({"dataset": "synthetic"}, {}, ConfigError, "does not say what text"),
        ({}, {"context_size": 65}, ConfigError, "context_size is 65, but .* reads 64 tokens at most"),
        ({}, {"model_batch_tokens": 0}, ConfigError, "model_batch_tokens is 0"),
        ({}, {"model": "builtin"}, ModelError, "model is 'builtin', where resid_post.0 has width 192.* width 12"),
        ({}, {"model": "./none"}, ModelError, "no such folder"),
        ({}, {"device": "cuda"}, ConfigError, "device is 'cuda'"),
    ],
)
def test_what_does_not_fit_is_refused(
    data: dict[str, Any],
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
    export: Export,
) -> None:
    folder = export(**data)
    with pytest.raises(error, match=message):
        load(folder, **settings)


def test_a_dictionary_without_a_language_model_is_refused(export: Export) -> None:
    with pytest.raises(ConfigError, match="without a language model"):
        load(export(Widths.of(12)))


def test_a_site_that_the_model_does_not_have_is_refused(export: Export, make_model: Callable[..., Path]) -> None:
    with pytest.raises(SiteError, match=r"resid_post\.7"):
        load(export(Widths.autoencoder(SiteRef(str(make_model()), "resid_post.7"), 12)))


def test_what_an_export_says_itself_wins_over_its_configuration(export: Export) -> None:
    told = SavedSAE.open(
        export(provenance={"model_revision": "abc", "context_size": 32, "dtype": None}, dtype="float32")
    ).provenance.data
    assert (told["model_revision"], told["context_size"], told["dtype"]) == ("abc", 32, "float32")


def test_what_auto_chose_in_training_does_not_bind_another_machine(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a dtype that was named for training holds for what reads the SAE, until another one is named."""
    for times, here in ((0.1, torch.float32), (4.0, torch.bfloat16)):
        monkeypatch.setattr("lightsae.lm.dtypes.bfloat16_speedup", lambda times=times: times)
        for asked in ("auto", None):
            folder = export(provenance={"dtype": "bfloat16" if times < 1 else "float32"}, dtype=asked)
            assert load(folder).main_model.dtype is here
        assert load(export(provenance={"dtype": "float32"}, dtype="float32")).main_model.dtype is torch.float32
        assert load(export(dtype="float32"), dtype="auto").main_model.dtype is here


@pytest.mark.parametrize("config", ["", "just words", "[1, 2]", "data: null", None])
def test_an_export_that_says_nothing(config: str | None, tmp_path: Path) -> None:
    save_sae(ReLU(Widths.of(12), d_sae=6), tmp_path / "sae", {"config": config})
    assert SavedSAE.open(tmp_path / "sae").provenance.data == {}


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    save_sae(ReLU(Widths.of(12), d_sae=6), tmp_path / "sae", {"config": "data: {unclosed"})
    with pytest.raises(FormatError, match="not YAML"):
        SavedSAE.open(tmp_path / "sae")


def test_what_the_manifest_says_does_not_depend_on_folders_of_the_sae(export: Export) -> None:
    first = load(export())
    assert set(first.corpus_entry()) >= {"dataset", "context_size", "validation_fraction", "prepend_bos"}
    assert "streaming" not in first.corpus_entry()
    tokenizer = first.tokenizer_entry()
    assert tokenizer == load(export()).tokenizer_entry()
    first.main_model.tokenizer.add_tokens(["<new>"])
    assert first.tokenizer_entry()["vocabulary"] != tokenizer["vocabulary"]


def test_an_sae_of_random_weights_is_read_with_those(export: Export, make_model: Callable[..., Path]) -> None:
    model = str(make_model())
    name = f"{model}@random-3"
    folder = export(Widths.autoencoder(SiteRef(name, "resid_post.0"), 12), model=name)
    loaded = load(folder)
    tokens = torch.arange(1, 9)[None]
    read = loaded.main_model.capture(tokens, ["resid_post.0"])["resid_post.0"]
    trained = LanguageModel.from_pretrained(model).capture(tokens, ["resid_post.0"])["resid_post.0"]
    again = LanguageModel.from_pretrained(name).capture(tokens, ["resid_post.0"])["resid_post.0"]
    assert torch.equal(read, again)
    assert (read - trained).norm() > trained.norm() / 2
    assert loaded.saved.provenance.model == loaded.main_model.name == name
    with pytest.raises(ModelError, match="@random-3"):
        load(folder, model=model)
    with pytest.raises(ModelError, match="was made for"):
        check_model(LanguageModel.from_pretrained(model), name, None)


def test_an_sae_of_a_trained_model_is_not_read_with_random_weights(
    export: Export, make_model: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match="was trained on"):
        load(export(), model=f"{make_model()}@random")
