"""ActivationDataModule: the length of a run, widths, what it says of itself, and settings that cannot work."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from transformers import ViTConfig

from helpers.errors import refused
from lightsae.activations.datamodule import ActivationDataModule
from lightsae.activations.stream import Process
from lightsae.errors import CheckpointError, ConfigError, CorpusError, ModelError, SiteError, section, under
from lightsae.lm import LanguageModel, placement
from lightsae.lm.dtypes import dtype_name, warn_if_slow
from lightsae.sae import SiteRef, TopK, Widths
from lightsae.training.module import SAEModule

Files = Callable[..., str]


@pytest.fixture
def text(tiny_text: Any) -> dict[str, Any]:
    """The settings of a small run on text."""
    return {
        "model": tiny_text.model,
        "site": "resid_post.0",
        "dataset": tiny_text.corpus,
        "context_size": 8,
        "batch_tokens": 16,
        "buffer_tokens": 64,
        "val_tokens": 64,
        "shuffle_tokens": 256,
        "num_workers": 0,
        "validation_fraction": 0.2,
    }


def set_up(data: ActivationDataModule, quiet: dict[str, Any], stage: str = "fit", **options: Any) -> Trainer:
    trainer = Trainer(**(quiet | {"max_epochs": 1} | options))
    data.trainer = trainer
    data.setup(stage)
    return trainer


# -- the length of the run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "options", "steps", "batches", "tokens"),
    [
        ({}, {"max_steps": 7}, 7, 7, 7 * 64),
        ({}, {"max_steps": 7, "accumulate_grad_batches": 3}, 7, 21, 21 * 64),
        ({"training_tokens": 640}, {}, 10, 10, 640),
        ({"training_tokens": 703}, {}, 10, 10, 640),
        ({"training_tokens": 640, "seed": 3}, {"accumulate_grad_batches": 5}, 2, 10, 640),
        ({"training_tokens": 64}, {}, 1, 1, 64),
        ({}, {"max_epochs": 1}, -1, 29, 29 * 64),
        ({}, {"max_epochs": 3}, -1, 29, 3 * 29 * 64),
    ],
)
def test_length(
    activation_file: Files,
    quiet: dict[str, Any],
    settings: dict[str, Any],
    options: dict[str, Any],
    steps: int,
    batches: int,
    tokens: int,
) -> None:
    data = ActivationDataModule(activations=activation_file(2000), batch_tokens=64, **settings)
    trainer = set_up(data, quiet, **options)
    assert trainer.max_steps == steps
    assert len(data.train_dataloader()) == batches
    assert data.run_tokens == tokens


def test_as_many_steps_are_taken(activation_file: Files, quiet: dict[str, Any]) -> None:
    for settings, options, steps in (
        ({"training_tokens": 640}, {}, 10),
        ({"training_tokens": 650}, {"accumulate_grad_batches": 3}, 3),
        ({}, {"max_steps": 7, "accumulate_grad_batches": 2}, 7),
        ({}, {"max_epochs": 2}, 2 * 29),
    ):
        data = ActivationDataModule(activations=activation_file(2000), batch_tokens=64, **settings)
        module = SAEModule(lambda widths: TopK(widths, d_sae=16, k=2))
        trainer = Trainer(**({"max_epochs": -1} | quiet | options))
        trainer.fit(module, data)
        assert trainer.global_step == steps
        assert module.tokens_seen == steps * 64 * options.get("accumulate_grad_batches", 1)


def test_no_length_at_all(activation_file: Files, text: dict[str, Any], quiet: dict[str, Any]) -> None:
    for settings in ({"activations": activation_file()}, text):
        with refused(ConfigError, r"trainer\.max_steps or data\.training_tokens"):
            set_up(ActivationDataModule(**settings), quiet, max_epochs=-1)


def test_a_run_on_text_needs_a_length_in_steps_or_tokens(text: dict[str, Any], quiet: dict[str, Any]) -> None:
    with refused(ConfigError, r"trainer\.max_steps or data\.training_tokens"):
        set_up(ActivationDataModule(**text), quiet, max_epochs=2)


def test_a_second_fit_begins_at_the_beginning(activation_file: Files, quiet: dict[str, Any]) -> None:
    data = ActivationDataModule(activations=activation_file(), batch_tokens=64, training_tokens=640)
    weights = []
    for _ in range(2):
        module = SAEModule(lambda widths: TopK(widths, d_sae=16, k=2), lr=0.01)
        trainer = Trainer(**quiet, max_epochs=-1)
        trainer.fit(module, data)
        assert trainer.global_step == 10
        weights.append(module.each_sae()["sae"].W_dec)
    assert torch.equal(*weights)


def test_a_second_fit_on_text(text: dict[str, Any], quiet: dict[str, Any]) -> None:
    data = ActivationDataModule(**text)
    weights = []
    for _ in range(2):
        module = SAEModule(lambda widths: TopK(widths, d_sae=16, k=2), lr=0.01)
        Trainer(**quiet, max_steps=9).fit(module, data)
        weights.append(module.each_sae()["sae"].W_dec)
    assert torch.equal(*weights)


# -- widths ----------------------------------------------------------------------------------------------------------


def test_widths_of_a_file(activation_file: Files) -> None:
    data = ActivationDataModule(activations=activation_file(name="mine.npy"))
    assert data.widths_at() == data.widths_at("mine") == Widths.autoencoder(SiteRef("", "mine"), 8)
    for place in ((None, "other"), ("other",)):
        with refused(SiteError, r"site is 'other', but data\.activations .* has one site, 'mine'"):
            data.widths_at(*place)


def test_widths_of_a_site_are_measured_without_weights(text: dict[str, Any]) -> None:
    for site, width in (("resid_post.1", 12), ("mlp_act.0", 16), ("attn_z.1", 12)):
        data = ActivationDataModule(**(text | {"site": site}))
        assert data.widths_at() == Widths.autoencoder(SiteRef(text["model"], site), width)
        assert data.language_model is None


def test_a_transcoder_and_a_crosscoder_have_widths_of_their_own(text: dict[str, Any]) -> None:
    first, act = (SiteRef(text["model"], site) for site in ("resid_post.0", "mlp_act.0"))
    transcoder = ActivationDataModule(**text, target_site="mlp_act.0")
    assert transcoder.widths_at() == Widths({first: 12}, {act: 16})
    crosscoder = ActivationDataModule(**(text | {"site": ["resid_post.0", "mlp_act.0"]}))
    assert crosscoder.widths_at() == Widths({first: 12, act: 16}, {first: 12, act: 16})


def test_an_entry_that_names_its_site_reads_and_predicts_there(text: dict[str, Any]) -> None:
    first, act, last = (SiteRef(text["model"], site) for site in ("resid_post.0", "mlp_act.0", "resid_post.1"))
    data = ActivationDataModule(**text, target_site="mlp_act.0")
    # The data's target belongs to the data's site: an entry at another one predicts what it reads.
    assert data.widths_at("resid_post.1") == Widths.autoencoder(last, 12)
    assert data.widths_at("resid_post.1", "mlp_act.0") == Widths({last: 12}, {act: 16})
    assert data.widths_at(None, "resid_post.1") == Widths({first: 12}, {last: 12})


@pytest.mark.parametrize(
    ("place", "kind", "said"),
    [
        (("resid_pots.1", None), SiteError, r"model\.saes\.a\.site is 'resid_pots\.1'"),
        (("resid_post.1", "mlp_atc.0"), SiteError, r"model\.saes\.a\.target_site is 'mlp_atc\.0'"),
        ((["resid_post.1", "resid_post.1"], None), ConfigError, r"model\.saes\.a\.site names a site twice"),
        (("chat:resid_post.1", None), SiteError, r"'chat' is no name in data\.more_models \(there: none\)"),
    ],
)
def test_a_site_that_is_not_there_is_named_as_it_was_written(
    text: dict[str, Any], place: tuple[Any, Any], kind: type[Exception], said: str
) -> None:
    with refused(kind, said) as error, section("model"), under("saes.a"):
        ActivationDataModule(**text).widths_at(*place)
    assert "\n" not in str(error.value)


def test_sites_of_a_second_model(text: dict[str, Any]) -> None:
    data = ActivationDataModule(**text, more_models={"chat": text["model"] + "/"})
    chat = SiteRef(text["model"] + "/", "mlp_act.1")
    assert data.widths_at("chat:mlp_act.1") == Widths.autoencoder(chat, 16)
    with refused(SiteError, r"Did you mean 'chat'\?"):
        data.widths_at("chta:mlp_act.1")


# -- what it says of itself ------------------------------------------------------------------------------------------


def test_description_of_files_has_no_path(activation_file: Files, tmp_path: Path) -> None:
    told = ActivationDataModule(activations=activation_file(), seed=5).describe()
    assert told == {"activations": "acts.npy", "normalisation": "sqrt_d", "seed": 5}
    assert str(tmp_path) not in str(told)


def test_description_of_text(text: dict[str, Any], quiet: dict[str, Any]) -> None:
    data = ActivationDataModule(**text, skip_positions=2, normalisation="unit")
    set_up(data, quiet, max_steps=3)
    told = data.describe()
    assert (told["site"], told["context_size"], told["skip_positions"]) == ("resid_post.0", 8, 2)
    assert told["normalisation"] == "unit"
    assert told["dataset_split"] == "train"
    plain = (str, int, float, bool, type(None))
    assert all(type(value) in plain for value in told.values())


def test_the_seed_is_that_of_seed_everything(activation_file: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert ActivationDataModule(activations=activation_file()).seed == 17
    assert ActivationDataModule(activations=activation_file(), seed=0).seed == 0
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert ActivationDataModule(activations=activation_file()).seed == 0


# -- loaders ---------------------------------------------------------------------------------------------------------


def test_text_becomes_batches(text: dict[str, Any], quiet: dict[str, Any]) -> None:
    data = ActivationDataModule(**text)
    set_up(data, quiet, max_steps=6)
    site = SiteRef(text["model"], "resid_post.0")
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [16] * 6
    assert {tuple(batch.activations[site].shape) for batch in batches} == {(16, 12)}
    held_out = list(data.val_dataloader())
    assert sum(len(batch) for batch in held_out) == 64
    assert [batch.rows_shape for batch in held_out] == [(2, 8)] * 4
    assert data.language_model is not None
    data.teardown("fit")


def test_the_sample_has_no_sinks(text: dict[str, Any], quiet: dict[str, Any]) -> None:
    data = ActivationDataModule(**text)
    set_up(data, quiet, max_steps=6)
    everything = data._stream.sample()
    (site,) = data.widths_at().read
    (sample,) = data.sample_without_sinks([site]).values()
    assert everything.sinks[site].sum() >= 8  # position 0 of 8 rows at least
    assert torch.equal(sample, everything.activations[site][~everything.sinks[site]])
    data.teardown("fit")


def test_a_sample_of_several_sites_is_of_the_same_tokens(text: dict[str, Any], quiet: dict[str, Any]) -> None:
    data = ActivationDataModule(**(text | {"site": ["resid_post.0", "mlp_act.0"]}))
    set_up(data, quiet, max_steps=6)
    everything = data._stream.sample()
    first, act = data.widths_at().read
    with_sink = everything.sinks[first] | everything.sinks[act]
    sample = data.sample_without_sinks([first, act])
    for site in (first, act):
        assert torch.equal(sample[site], everything.activations[site][~with_sink])
    data.teardown("fit")


@pytest.fixture
def two_models(text: dict[str, Any], make_model: Callable[..., Path], byte_tokenizer: Any) -> dict[str, Any]:
    """The settings of a small run on one site of two models."""
    chat = str(make_model("llama", 3))
    return text | {"site": ["resid_post.0", "chat:mlp_act.2"], "more_models": {"chat": chat}}


def test_two_models_read_the_same_tokens(two_models: dict[str, Any], quiet: dict[str, Any]) -> None:
    data = ActivationDataModule(**two_models)
    set_up(data, quiet, max_steps=6)
    here, there = data.widths_at().read
    assert (here.model, there.model) == (two_models["model"], two_models["more_models"]["chat"])
    models = {site: LanguageModel.from_pretrained(site.model) for site in (here, there)}
    for batch in data.val_dataloader():
        assert set(batch.activations) == set(batch.sinks) == {here, there}
        for site, model in models.items():
            expected = model.capture(batch.tokens.reshape(batch.rows_shape), [site.site])[site.site].flatten(0, 1)
            torch.testing.assert_close(batch.activations[site], expected, rtol=1e-4, atol=1e-5)
    assert [len(batch) for batch in data.train_dataloader()] == [16] * 6
    assert set(data.language_models) == {here.model, there.model}
    assert data.language_model is data.language_models[here.model], "the first brings the text"
    data.teardown("fit")


def test_a_model_that_no_dictionary_reads_is_not_loaded(two_models: dict[str, Any], quiet: dict[str, Any]) -> None:
    data = ActivationDataModule(**(two_models | {"site": "resid_post.1"}))
    set_up(data, quiet, max_steps=1)
    assert list(data.language_models) == [two_models["model"]]
    data.teardown("fit")


def test_models_of_other_vocabularies_cannot_read_the_same_tokens(
    two_models: dict[str, Any], quiet: dict[str, Any], byte_tokenizer: Any, tmp_path: Path
) -> None:
    shutil.copytree(two_models["more_models"]["chat"], tmp_path / "chat")
    other = copy.deepcopy(byte_tokenizer)
    other.add_tokens(["<turn>"])
    other.save_pretrained(tmp_path / "chat")
    data = ActivationDataModule(**(two_models | {"more_models": {"chat": str(tmp_path / "chat")}}))
    with refused(ConfigError, r"data\.more_models: .*chat' has another vocabulary than data\.model"):
        set_up(data, quiet, max_steps=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"more_models": {"a b": "x"}}, r"data\.more_models: 'a b' is no name; write letters, digits and _"),
        ({"dataset": None, "activations": "x.npy", "more_models": {"a": "x"}}, r"data\.more_models: there is no text"),
        ({"site": ["resid_post.0", "resid_post.0"]}, r"data\.site names a site twice"),
    ],
)
def test_several_models_and_sites_that_cannot_work(text: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    with refused(ConfigError, said):
        ActivationDataModule(**(text | settings)).widths_at()


def test_a_context_that_the_second_model_cannot_read(two_models: dict[str, Any]) -> None:
    with refused(ConfigError, r"data\.context_size is 65.*64 tokens at most"):
        ActivationDataModule(**(two_models | {"context_size": 65, "buffer_tokens": 650})).preflight()


def test_a_model_of_images_is_refused_with_what_to_do_instead(text: dict[str, Any], tmp_path: Path) -> None:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ViTConfig(**small, image_size=28, patch_size=14).save_pretrained(tmp_path / "vit")
    data = ActivationDataModule(**(text | {"model": str(tmp_path / "vit")}))
    with refused(ConfigError, r"^data\.model is '.*vit', which reads images.* train on that: data\.activations"):
        data.preflight()


def test_a_second_model_that_is_not_there_is_named_as_it_was_written(text: dict[str, Any]) -> None:
    data = ActivationDataModule(**text, more_models={"chat": "./nowhere"})
    with refused(ModelError, r"^data\.more_models\.chat is '\./nowhere', and there is no such folder"):
        data.preflight()
    with refused(ModelError, r"^data\.more_models\.chat is"), section("model"), under("saes.a"):
        data.widths_at("chat:resid_post.0")


def test_two_ranks_read_different_rows(text: dict[str, Any], quiet: dict[str, Any]) -> None:
    rows = []
    for rank in (0, 1):
        trainer = Trainer(**quiet, max_steps=20)
        trainer.strategy.global_rank, trainer.strategy.world_size = rank, 2
        data = ActivationDataModule(**text)
        data.trainer = trainer
        data.setup("fit")
        rows.append({row for batch in data.train_dataloader() for row in batch.rows.tolist()})
        assert data.run_tokens == 20 * 16 * 2
        data.teardown("fit")
    assert not rows[0] & rows[1]


# -- validation alone ------------------------------------------------------------------------------------------------


def test_validation_alone_reads_no_training_text(text: dict[str, Any], quiet: dict[str, Any]) -> None:
    data = ActivationDataModule(**text)
    set_up(data, quiet, "validate")
    assert len(list(data.val_dataloader())) == 4
    assert data.state_dict() == {}


def test_too_few_held_out_tokens_are_told(text: dict[str, Any], quiet: dict[str, Any]) -> None:
    data = ActivationDataModule(**(text | {"val_tokens": 1_000_000}))
    with pytest.warns(UserWarning, match=r"held-out tokens; val_tokens asks for 1000000"):
        set_up(data, quiet, "validate")


# -- settings that cannot work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_tokens": 0}, r"data\.batch_tokens is 0"),
        ({"buffer_tokens": -1}, r"data\.buffer_tokens is -1"),
        ({"val_tokens": 0}, r"data\.val_tokens is 0"),
        ({"model_batch_tokens": 0}, r"data\.model_batch_tokens is 0"),
        ({"context_size": 1}, r"data\.context_size is 1"),
        ({"buffer_tokens": 15}, r"data\.buffer_tokens is 15, less than data\.batch_tokens \(16\)"),
        ({"buffer_tokens": 20, "context_size": 32}, r"data\.buffer_tokens is 20, less than one row"),
        ({"validation_fraction": 0.0}, r"data\.validation_fraction is 0\.0"),
        ({"validation_fraction": 1.0}, r"data\.validation_fraction is 1\.0"),
        ({"training_tokens": 15}, r"data\.training_tokens is 15"),
        ({"skip_positions": 8}, r"data\.skip_positions is 8"),
        ({"skip_positions": -1}, r"data\.skip_positions is -1"),
        ({"num_workers": -1}, r"data\.num_workers is -1"),
    ],
)
def test_numbers_that_cannot_work(text: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    with refused(ConfigError, said) as error:
        ActivationDataModule(**(text | settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"site": None}, ConfigError, r"data\.site is missing"),
        ({"dataset": None}, ConfigError, r"data\.dataset is missing"),
        ({"site": "resid_pots.0"}, SiteError, r"data\.site is 'resid_pots.0'"),
        ({"site": "resid_post.2"}, SiteError, r"layers 0\.\.1"),
        ({"model": "no/such/folder"}, ModelError, r"data\.model"),
        ({"dataset": "no_such_file.jsonl"}, CorpusError, r"data\.dataset"),
        ({"text_column": "txet"}, CorpusError, r"data\.text_column"),
        ({"context_size": 65, "buffer_tokens": 650}, ConfigError, r"data\.context_size is 65.*64 tokens at most"),
        ({"activations": "no_such.npy"}, CorpusError, r"data\.activations"),
    ],
)
def test_preflight_finds_it(text: dict[str, Any], settings: dict[str, Any], kind: type, said: str) -> None:
    def look() -> None:
        data = ActivationDataModule(**(text | settings))
        data.preflight()
        data.widths_at()

    with refused(kind, said) as error:
        look()
    assert "\n" not in str(error.value)


def test_preflight_of_what_works_loads_nothing(text: dict[str, Any], activation_file: Files) -> None:
    for settings in (text, {"activations": activation_file()}):
        data = ActivationDataModule(**settings)
        data.preflight()
        assert data.language_model is None


# -- the dtype -------------------------------------------------------------------------------------------------------


@pytest.fixture
def speedup(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Set how many times faster than float32 this CPU is in bfloat16."""
    warn_if_slow.cache_clear()
    yield lambda times: monkeypatch.setattr("lightsae.lm.dtypes.bfloat16_speedup", lambda: times)
    warn_if_slow.cache_clear()


def buffer_dtype(data: ActivationDataModule) -> torch.dtype:
    (values,) = next(iter(data.train_dataloader())).activations.values()
    return values.dtype


@pytest.mark.parametrize(("times", "chosen"), [(0.1, "float32"), (4.0, "bfloat16")])
def test_auto_is_what_is_fast_here_and_the_export_says_which(
    times: float, chosen: str, text: dict[str, Any], quiet: dict[str, Any], speedup: Callable[[float], None]
) -> None:
    speedup(times)
    data = ActivationDataModule(**text)
    assert "dtype" not in data.describe()
    set_up(data, quiet, max_steps=4)
    assert data.language_model is not None
    assert data.describe()["dtype"] == data.state_dict()["dtype"] == chosen
    assert dtype_name(data.language_model.dtype) == dtype_name(buffer_dtype(data)) == chosen
    assert next(iter(data.val_dataloader())).activations.popitem()[1].dtype is data.chosen_dtype
    data.teardown("fit")


def test_auto_keeps_the_digits_of_files_which_no_model_computes(
    activation_file: Files, quiet: dict[str, Any], speedup: Callable[[float], None]
) -> None:
    speedup(4.0)
    for dtype, chosen in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        data = ActivationDataModule(activations=activation_file(), batch_tokens=64, dtype=dtype)
        set_up(data, quiet, max_steps=4)
        assert buffer_dtype(data) is chosen


def test_one_process_chooses_for_all(
    text: dict[str, Any], quiet: dict[str, Any], speedup: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    speedup(0.1)
    trainer = Trainer(**(quiet | {"max_steps": 4}))
    monkeypatch.setattr(trainer.strategy, "broadcast", lambda mine: torch.bfloat16)  # what rank 0 says
    data = ActivationDataModule(**text)
    data.trainer = trainer
    data.setup("validate")
    assert data.language_model is not None
    assert data.language_model.dtype is torch.bfloat16


@pytest.mark.parametrize(("before", "now"), [(4.0, 0.1), (0.1, 4.0)])
def test_a_resumed_run_goes_on_in_the_dtype_that_auto_chose_before(
    before: float,
    now: float,
    text: dict[str, Any],
    quiet: dict[str, Any],
    speedup: Callable[[float], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """To the bit, on a machine where `auto` would choose otherwise."""
    half = tmp_path / "half.ckpt"

    class SaveHalfWay(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 6 and not half.exists():
                trainer.save_checkpoint(half)

    def fit(ckpt_path: Path | None = None) -> torch.Tensor:
        module = SAEModule(lambda widths: TopK(widths, d_sae=16, k=2), lr=0.01)
        trainer = Trainer(**(quiet | {"max_steps": 12, "callbacks": [SaveHalfWay()]}))
        trainer.fit(module, ActivationDataModule(**text), ckpt_path=ckpt_path, weights_only=True)
        return module.each_sae()["sae"].W_dec

    speedup(before)
    whole = fit()
    speedup(now)
    assert not torch.equal(fit(), whole)
    caplog.clear()
    assert torch.equal(fit(half), whole)
    warned = [record.getMessage() for record in caplog.records if record.name == "lightsae.lm.dtypes"]
    slow = (
        "The checkpoint's dtype is 'bfloat16', but bfloat16 is 10.0 times slower than float32 here; "
        "write dtype: float32."
    )
    assert warned == ([slow] if now < 1 else [])


def test_a_dtype_that_is_named_wins_over_the_checkpoint_and_says_what_it_costs(
    text: dict[str, Any], quiet: dict[str, Any]
) -> None:
    first = ActivationDataModule(**text, dtype="bfloat16")
    set_up(first, quiet, max_steps=4)
    data = ActivationDataModule(**text, dtype="float32")
    set_up(data, quiet, max_steps=4)
    with pytest.warns(UserWarning, match="dtype is float32, and was bfloat16 in the checkpoint"):
        data.load_state_dict(first.state_dict())
    assert buffer_dtype(data) is torch.float32


def test_the_next_fit_chooses_anew(
    text: dict[str, Any], quiet: dict[str, Any], speedup: Callable[[float], None]
) -> None:
    speedup(4.0)
    data = ActivationDataModule(**text)
    set_up(data, quiet, max_steps=4)
    data.load_state_dict(data.state_dict() | {"dtype": "float32"})
    for dtype in (torch.float32, torch.bfloat16):
        assert data.language_model is not None
        assert buffer_dtype(data) is data.language_model.dtype is data.chosen_dtype is dtype
        data.teardown("fit")
        set_up(data, quiet, max_steps=4)


def test_a_checkpoint_from_before_the_choice_was_float32_on_a_cpu(
    text: dict[str, Any], quiet: dict[str, Any], speedup: Callable[[float], None]
) -> None:
    speedup(4.0)
    data = ActivationDataModule(**text)
    set_up(data, quiet, max_steps=4)
    data.load_state_dict({key: value for key, value in data.state_dict().items() if key != "dtype"})
    assert buffer_dtype(data) is torch.float32
    assert data.dtype_on(torch.device("cuda"), {"served_batches": 0}) is torch.bfloat16


@pytest.mark.parametrize("setting", ["normalisation", "dtype"])
def test_a_name_that_is_none_of_the_known(text: dict[str, Any], setting: str) -> None:
    # Past the type checks of the tests, as in a notebook.
    data = ActivationDataModule(**text)
    object.__setattr__(data, setting, "sqrtd")
    with refused(ConfigError, rf"{setting} is 'sqrtd'"):
        data.check()


# -- where the language model runs, and what its weights are rounded to ------------------------------------------------


@pytest.mark.parametrize("setting", [{"quantization": "8bit"}, {"device": "cpu"}, {"device_map": "auto"}])
def test_without_a_language_model_there_is_nothing_to_place(activation_file: Files, setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    with refused(ConfigError, f"^data.{name} is '{value}'; but no language model is read; leave it out"):
        ActivationDataModule(activations=activation_file(300), **setting)


def test_a_language_model_on_a_device_of_its_own(text: dict[str, Any], quiet: dict[str, Any]) -> None:
    batches = []
    for device in (None, "cpu"):
        data = ActivationDataModule(**text, device=device)
        set_up(data, quiet, max_steps=4)
        batches.append(next(iter(data.train_dataloader())))
        data.teardown("fit")
    (ours, theirs), site = batches, SiteRef(text["model"], "resid_post.0")
    assert torch.equal(ours.activations[site], theirs.activations[site])


def test_activations_arrive_at_the_device_of_the_run(text: dict[str, Any]) -> None:
    """Meta stands for the device that trains."""
    data, site = ActivationDataModule(**text, device="cpu"), SiteRef(text["model"], "resid_post.0")
    process = Process((site,), torch.device("meta"), torch.float32)
    models = data.source.models(process)
    (lm,) = models.values()
    assert (lm.device.type, lm.model.device.type) == ("meta", "cpu")
    read = lm.capture(torch.zeros(2, 8, dtype=torch.long), ["resid_post.0"])["resid_post.0"]
    assert read.device.type == "meta"


@pytest.mark.parametrize(("before", "now"), [(None, "4bit"), ("8bit", None), ("8bit", "4bit")])
def test_a_resumption_with_other_weights_is_refused(
    text: dict[str, Any], quiet: dict[str, Any], before: Any, now: Any
) -> None:
    first = ActivationDataModule(**text)
    set_up(first, quiet, max_steps=4)
    next(iter(first.train_dataloader()))
    object.__setattr__(first, "quantization", before)
    state = first.state_dict()
    first.teardown("fit")
    said = f"^data.quantization differs from the checkpoint's: it was {before} and is {now}. Go on with the run's own"
    with refused(CheckpointError, said):
        ActivationDataModule(**text, quantization=now).check_place(state, 1)
    object.__setattr__(first, "quantization", None)
    set_up(first, quiet, max_steps=4)
    if before is None:
        first.check_place(state, 1)
        object.__setattr__(first, "quantization", now)
    with refused(CheckpointError, "^data.quantization differs from the checkpoint's"):
        first.load_state_dict(state)
    first.teardown("fit")


def test_the_rounding_is_told_to_who_reads_the_export(text: dict[str, Any]) -> None:
    assert ActivationDataModule(**text, quantization="8bit").describe()["quantization"] == "8bit"
    assert "quantization" not in ActivationDataModule(**text).describe()


def test_random_weights_are_not_rounded(text: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: name)
    data = ActivationDataModule(**(text | {"model": f"{text['model']}@random"}), quantization="8bit")
    with refused(ModelError, r"^data.model is '.*@random', but data.quantization is '8bit': random weights are not"):
        data.preflight()


def test_a_run_on_rounded_weights(text: dict[str, Any], quiet: dict[str, Any]) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    batches, site = [], SiteRef(text["model"], "resid_post.0")
    for quantization in (None, "4bit", "4bit"):
        data = ActivationDataModule(**text, quantization=quantization, dtype="float32")
        set_up(data, quiet, max_steps=4)
        batches.append(next(iter(data.train_dataloader())).activations[site])
        data.teardown("fit")
    plain, rounded, again = batches
    assert torch.equal(rounded, again)
    assert 0 < (rounded - plain).norm() / plain.norm() < 0.5
