"""Entries of a run: what they inherit, what they may be called, and what is said of those that cannot work."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from helpers.errors import refused
from lightsae.activations.datamodule import ActivationDataModule
from lightsae.errors import ConfigError, LightsaeError, SiteError
from lightsae.sae import Crosscoder, ReLU, SparseAutoencoder, TopK, Transcoder, Widths, mechanisms
from lightsae.training.entries import Entry, merge_coefficients
from lightsae.training.module import SAEModule
from lightsae.training.schedules import Schedule


def top_k(widths: Widths) -> SparseAutoencoder:
    return TopK(widths, 16, k=2)


def relu(widths: Widths) -> SparseAutoencoder:
    return ReLU(widths, 16)


@pytest.fixture
def data(tiny_text: Any) -> ActivationDataModule:
    return ActivationDataModule(
        model=tiny_text.model, site="resid_post.0", target_site="mlp_act.0", dataset=tiny_text.corpus,
        context_size=8, batch_tokens=32, buffer_tokens=64, val_tokens=32, num_workers=0,
    )  # fmt: skip


# -- what is taken from where ----------------------------------------------------------------------------------------


def test_an_entry_without_a_site_is_at_the_datas(data: ActivationDataModule) -> None:
    entries = {
        "here": Entry(lambda w: Transcoder(w, 16, mechanisms.TopK(2))),
        "there": Entry(top_k, site="mlp_act.1"),
        "across": Entry(lambda w: Transcoder(w, 16, mechanisms.TopK(2)), site="resid_post.1", target_site="mlp_act.1"),
        "both": Entry(lambda w: Crosscoder(w, 16, mechanisms.ReLU()), site=["resid_post.0", "resid_post.1"]),
    }
    built = SAEModule(saes=entries).build(data)
    places = {
        name: ([site.site for site in sae.widths.read], [site.site for site in sae.widths.predicted])
        for name, sae in built.items()
    }
    assert places == {
        "here": (["resid_post.0"], ["mlp_act.0"]),
        "there": (["mlp_act.1"], ["mlp_act.1"]),
        "across": (["resid_post.1"], ["mlp_act.1"]),
        "both": (["resid_post.0", "resid_post.1"], ["resid_post.0", "resid_post.1"]),
    }
    assert [(sae.d_in, sae.d_out) for sae in built.values()] == [(12, 16), (16, 16), (12, 16), (24, 24)]


def test_every_site_is_read_once(data: ActivationDataModule, quiet: dict[str, Any]) -> None:
    entries = {
        "a": Entry(top_k, site="resid_post.1"),
        "b": Entry(top_k, site="resid_post.1"),
        "c": Entry(lambda w: Transcoder(w, 16, mechanisms.TopK(2))),
    }
    read: list[list[str]] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
            read.append([site.site for site in batch.activations])

    Trainer(**quiet, max_steps=1, callbacks=[Look()]).fit(SAEModule(saes=entries), data)
    assert read == [["resid_post.1", "resid_post.0", "mlp_act.0"]]


def test_coefficients_of_the_entry_stand_above_those_of_the_run(data: ActivationDataModule) -> None:
    entries = {
        "a": Entry(relu, coefficients={"l1": 1.0}, site="resid_post.0"),
        "b": Entry(relu, site="resid_post.0"),
        "c": Entry(top_k, site="resid_post.0"),
    }
    module = SAEModule(saes=entries, coefficients={"l1": Schedule(2.0, warm_up=7.0), "auxk": 0.5})
    module.build(data)
    assert module.coefficients == {
        "a": {"mse": Schedule(1.0), "l1": Schedule(1.0, warm_up=0.05)},
        "b": {"mse": Schedule(1.0), "l1": Schedule(2.0, warm_up=7.0)},
        "c": {"mse": Schedule(1.0), "auxk": Schedule(0.5)},
    }


def test_learning_rates_and_adams_settings_by_entry(
    data: ActivationDataModule, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightsae.sae.mechanisms.base.HIGHEST_LR", 1.0)
    entries = {
        "own": Entry(top_k, lr=0.5, site="resid_post.0"),
        "runs": Entry(relu, site="resid_post.0"),
        "wide": Entry(lambda w: TopK(w, 64, k=2), site="resid_post.0"),
    }
    for lr, expected in ((0.25, [0.5, 0.25, 0.25]), (None, [0.5, 2.5 / 12**0.5, 2.5 / 12**0.5])):
        trainer = Trainer(**quiet, max_steps=1)
        trainer.fit(SAEModule(saes=entries, lr=lr, lr_warm_up=0.0, lr_decay=0.0), data)
        groups = trainer.optimizers[0].param_groups
        assert [group["name"] for group in groups] == list(entries)
        assert [group["initial_lr"] for group in groups] == pytest.approx(expected)
        assert [group["eps"] for group in groups] == [6.25e-10, 1e-8, 6.25e-10]


def test_a_dictionary_called_sae_keeps_what_its_entry_says(data: ActivationDataModule) -> None:
    module = SAEModule(saes={"sae": Entry(relu, site="resid_post.1", coefficients={"l1": 1.5}), "b": Entry(relu)})
    object.__setattr__(data, "target_site", None)
    (first, _) = module.build(data).values()
    assert [site.site for site in first.widths.read] == ["resid_post.1"]
    assert module.coefficients["sae"]["l1"].value == 1.5
    with refused(ConfigError, r"^model\.saes\.sae\.sae\.k is 99"):
        SAEModule(saes={"sae": Entry(lambda w: TopK(w, 16, k=99))}).build(data)
    with refused(SiteError, r"^model\.saes\.sae\.site is 'resid_post\.9'"):
        SAEModule(saes={"sae": Entry(relu, site="resid_post.9")}).build(data)


def test_the_last_coefficients_win_and_have_to_be_known() -> None:
    sae = TopK(Widths.of(4), 8, k=2)
    assert merge_coefficients(sae, {"auxk": 1.0, "mse": 3.0}, {"auxk": 2.0})["auxk"] == Schedule(2.0)
    assert merge_coefficients(sae, {"l1": 1.0}, {}).keys() == {"mse", "auxk"}, "for those that have the term"
    with pytest.raises(ConfigError, match=r"TopK has the loss terms mse, auxk, kl\."):
        merge_coefficients(sae, {}, {"l1": 1.0})


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "A9", "0", "topk_k16", "batch-topk", "x" * 60, "values_", "Keys"])
def test_names_that_work(data: ActivationDataModule, quiet: dict[str, Any], name: str) -> None:
    module = SAEModule(saes={name: Entry(top_k, site="resid_post.0"), "other": Entry(relu, site="resid_post.0")})
    Trainer(**quiet, max_steps=1).fit(module, data)
    assert list(module.each_sae()) == [name, "other"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a/b",
        "a.b",
        "..",
        "-a",
        "_a",
        "ä",
        "a\n",
        "train",
        "val",
        "perf",
        "keys",
        "forward",
        "to",
    ],
)
def test_names_that_do_not(name: str) -> None:
    with refused(ConfigError, f"model.saes: {re.escape(repr(name))} cannot be an SAE's name"):
        SAEModule(saes={"good": Entry(top_k), name: Entry(top_k)})


# -- what cannot work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"model\.sae is missing"),
        ({"saes": {}}, r"model\.sae is missing"),
        ({"sae": top_k, "saes": {"a": Entry(top_k), "b": Entry(top_k)}}, r"and model\.saes \(a, b\) are both given"),
        ({"saes": {"a": Entry(top_k, lr=0.0)}}, r"model\.saes\.a\.lr is 0\.0; it must be above 0"),
        ({"saes": {"a": Entry(top_k, lr=-1.0)}}, r"model\.saes\.a\.lr is -1\.0"),
    ],
)
def test_forms_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with refused(ConfigError, message):
        SAEModule(**settings)


AT = {"site": "resid_post.0"}


@pytest.mark.parametrize(
    ("entry", "model", "kind", "message"),
    [
        (Entry(relu, **AT, coefficients={"l2": 1.0}), {}, ConfigError,
         r"model\.saes\.bad\.coefficients\.l2: ReLU has the loss terms mse, l1, kl\. Did you mean 'l1'\?"),
        (Entry(relu, **AT), {"coefficients": {"l0": 1.0}}, ConfigError,
         r"model\.coefficients\.l0: none of the SAEs has this loss term"),
        (Entry(lambda w: TopK(w, 16, k=17), **AT), {}, ConfigError, r"^model\.saes\.bad\.sae\.k is 17"),
        (Entry(lambda w: TopK(w, 16, k=2, k_fall=0.0), **AT), {}, ConfigError, r"^model\.saes\.bad\.sae\.k_fall is"),
        (Entry(lambda w: Transcoder(w, 16, mechanisms.TopK(0))), {}, ConfigError,
         r"^model\.saes\.bad\.sae\.mechanism\.k is 0"),
        (Entry(lambda w: Transcoder(w, 16, mechanisms.TopK(2)), **AT), {}, ConfigError, "predicts another site"),
        (Entry(lambda w: Crosscoder(w, 16, mechanisms.ReLU()), **AT), {}, ConfigError, "reads several sites"),
        (Entry(top_k, site="resid_post.7"), {}, SiteError, r"model\.saes\.bad\.site is 'resid_post\.7'"),
        (Entry(top_k, target_site="mlp_atc.0"), {}, SiteError, r"model\.saes\.bad\.target_site is 'mlp_atc\.0'"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_work_is_named(
    data: ActivationDataModule, entry: Entry, model: dict[str, Any], kind: type[Exception], message: str
) -> None:
    module = SAEModule(saes={"good": Entry(top_k, **AT), "bad": entry}, **model)
    with refused(kind, message) as error:
        module.build(data)
    assert "model.sae." not in error.value.as_typed(), "named as the user wrote it"


def test_a_wrong_site_is_the_entrys_where_a_fit_asks_for_it_first(
    data: ActivationDataModule, quiet: dict[str, Any]
) -> None:
    module = SAEModule(saes={"good": Entry(top_k, **AT), "bad": Entry(top_k, site="resid_post.7")})
    with refused(SiteError, r"^model\.saes\.bad\.site is 'resid_post\.7'") as error:
        Trainer(**quiet, max_steps=1).fit(module, data)
    assert str(error.value).startswith("saes.bad.site is 'resid_post.7'")


def test_in_the_short_form_keys_keep_their_names(data: ActivationDataModule) -> None:
    build: list[tuple[Callable[[Widths], SparseAutoencoder], str]] = [
        (lambda w: Transcoder(w, 16, mechanisms.TopK(99)), r"^model\.sae\.mechanism\.k is 99"),
        (lambda w: Transcoder(w, 0, mechanisms.TopK(2)), r"^model\.sae\.d_sae is 0"),
    ]
    for make, message in build:
        with refused(LightsaeError, message):
            SAEModule(make).build(data)
    with refused(ConfigError, r"^model\.coefficients\.l1: Transcoder has the loss terms mse, auxk"):
        SAEModule(lambda w: Transcoder(w, 16, mechanisms.TopK(2)), coefficients={"l1": 1.0}).build(data)


# -- figures ---------------------------------------------------------------------------------------------------------


def test_figures_of_several_begin_with_a_name_and_of_one_do_not(
    data: ActivationDataModule, quiet: dict[str, Any]
) -> None:
    object.__setattr__(data, "target_site", None)
    for names in (("only",), ("a", "b")):
        trainer = Trainer(**quiet, max_steps=1)
        trainer.fit(SAEModule(saes={name: Entry(top_k) for name in names}), data)
        tags = ("train/loss", "train/mse", "train/coefficient/auxk", "train/lr")
        expected = {tag if len(names) == 1 else f"{name}/{tag}" for name in names for tag in tags}
        assert expected <= set(trainer.callback_metrics)
        assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())
