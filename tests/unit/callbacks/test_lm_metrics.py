"""The identity costs nothing, zeros and the mean cost what the ablations do: on a tiny random Llama."""

import logging
import math
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from lightsae.activations.batch import ActivationBatch
from lightsae.callbacks.lm_metrics import LanguageModelMetrics
from lightsae.errors import ConfigError
from lightsae.lm import LanguageModel
from lightsae.sae import ReLU, SAEOutput, SiteRef, SparseAutoencoder, Transcoder, Widths, mechanisms
from lightsae.training.entries import Entry
from lightsae.training.module import SAEModule

D, VOCABULARY, ROWS, CONTEXT, EOS = 16, 40, 5, 9, 1
SITE, MLP, LAST = (SiteRef("tiny", site) for site in ("resid_post.0", "mlp_out.0", "mlp_out.1"))
ELSEWHERE = SiteRef("chat", "resid_post.0")
WIDTHS = Widths.autoencoder(SITE, D)


def tiny_llama(dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=D, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=VOCABULARY,
        max_position_embeddings=32, initializer_range=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    return LanguageModel("tiny", None, config, LlamaForCausalLM(config).eval().to(dtype), False)


class Rows(LightningDataModule):
    """Validation batches of whole rows, read from the model as the stream would."""

    run_tokens = None

    def __init__(self, model: LanguageModel | None, batches: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.language_model = model
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(2, VOCABULARY, (batches, ROWS, CONTEXT), generator=generator)
        self.tokens[:, :, 0] = 0
        self.tokens[:, 1, 4] = EOS

    def batch(self, index: int) -> ActivationBatch:
        tokens = self.tokens[index]
        if self.language_model is None:
            captured = {SITE: torch.randn(ROWS, CONTEXT, D)}
        else:
            by_name = self.language_model.capture(tokens, [site.site for site in (SITE, MLP, LAST)])
            captured = {site: by_name[site.site] for site in (SITE, MLP, LAST)}
            captured[ELSEWHERE] = 3 * captured[SITE]
        x = {site: values.flatten(0, 1) for site, values in captured.items()}
        flat, special = tokens.flatten(), tokens.flatten() < 2
        positions = torch.arange(CONTEXT).repeat(ROWS)
        return ActivationBatch(
            x, flat, positions, flat, flat, special, dict.fromkeys(x, special | (positions == 0)), index,
            (ROWS, CONTEXT),
        )  # fmt: skip

    def widths_at(self, *_place: Any) -> Widths:
        return WIDTHS

    def transfer_batch_to_device(self, batch: ActivationBatch, device: Any, dataloader_idx: int) -> ActivationBatch:
        return batch

    def val_dataloader(self) -> Any:
        return DataLoader(range(len(self.tokens)), batch_size=None, collate_fn=self.batch)

    def mean_without_sinks(self) -> Tensor:
        batches = [self.batch(i) for i in range(len(self.tokens))]
        return torch.cat([b.activations[SITE][~b.sinks[SITE]] for b in batches]).mean(0)


class Replace(ReLU):
    """Predicts factor * x + shift, at one site or at several."""

    def __init__(self, factor: float, shift: Tensor | float = 0.0, *sites: SiteRef) -> None:
        widths = dict.fromkeys(sites or (SITE,), D)
        super().__init__(Widths(widths, widths), d_sae=4)
        self.factor, self.shift = factor, shift

    def forward(self, x: Tensor) -> SAEOutput:
        return SAEOutput(x, x.new_zeros(len(x), 4), self.factor * x + self.shift, torch.ones(1))


class Constant(Transcoder):
    """Reads one site and predicts the same at another for every token."""

    def __init__(self, value: Tensor) -> None:
        super().__init__(Widths({SITE: D}, {MLP: D}), 4, mechanisms.ReLU())
        self.value = value

    def forward(self, x: Tensor) -> SAEOutput:
        return SAEOutput(x, x.new_zeros(len(x), 4), self.value.expand(len(x), D), torch.ones(1))


def dictionaries(**saes: SparseAutoencoder) -> SAEModule:
    if saes.keys() == {"sae"}:
        return SAEModule(lambda _: saes["sae"])
    return SAEModule(saes={name: Entry(lambda _, sae=sae: sae) for name, sae in saes.items()})


def a_trainer(callback: LanguageModelMetrics) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, callbacks=[callback], enable_checkpointing=False, enable_progress_bar=False
    )


def validate(data: Rows, callback: LanguageModelMetrics | None = None, **saes: SparseAutoencoder) -> dict[str, float]:
    trainer = a_trainer(callback or LanguageModelMetrics())
    return dict(trainer.validate(dictionaries(**saes), data, verbose=False)[0])


@pytest.fixture
def data() -> Rows:
    return Rows(tiny_llama())


def reference_ce(data: Rows, write: Any = None, *sites: SiteRef) -> float:
    """Cross-entropy by the model's own loss, with a hand-written hook on its first block, or at each of the sites."""
    model = data.language_model.model
    tokens = data.tokens.flatten(0, 1)
    first, last = model.model.layers
    modules = {SITE: first, MLP: first.mlp, LAST: last.mlp}
    if not isinstance(write, dict):
        write = dict.fromkeys(sites or (SITE,), write or (lambda out: out))
    handles = [
        modules[site].register_forward_hook(lambda _m, _a, out, change=change: change(out))
        for site, change in write.items()
    ]
    with torch.no_grad():
        loss = model(tokens, labels=torch.where(tokens < 2, -100, tokens)).loss.item()
    for handle in handles:
        handle.remove()
    return loss


def test_the_identity_costs_nothing(data):
    figures = validate(data, sae=Replace(1.0))
    assert figures["val/ce_spliced"] == figures["val/ce_clean"]
    assert figures["val/ce_spliced_no_sinks"] == figures["val/ce_clean"]
    for name in ("ce_recovered", "ce_recovered_mean", "ce_recovered_no_sinks"):
        assert figures[f"val/{name}"] == 1, name
    assert figures["val/kl"] == figures["val/kl_no_sinks"] == 0


def test_zeros_recover_nothing(data):
    figures = validate(data, sae=Replace(0.0))
    assert figures["val/ce_spliced"] == figures["val/ce_zero"]
    assert figures["val/ce_spliced_no_sinks"] == figures["val/ce_zero_no_sinks"]
    assert figures["val/ce_recovered"] == figures["val/ce_recovered_no_sinks"] == 0
    assert figures["val/kl"] > 0


def test_the_mean_recovers_nothing_of_the_mean_ablation(data):
    figures = validate(data, sae=Replace(0.0, data.mean_without_sinks()))
    assert figures["val/ce_spliced"] == pytest.approx(figures["val/ce_mean"], rel=1e-6)
    assert figures["val/ce_recovered_mean"] == pytest.approx(0, abs=1e-5)


def test_cross_entropies_are_those_of_the_model_itself(data):
    figures = validate(data, sae=Replace(0.5))
    sinks = (data.tokens.flatten(0, 1) < 2)[..., None]  # in these rows, position 0 and the special tokens
    mean = data.mean_without_sinks()
    assert figures["val/ce_clean"] == pytest.approx(reference_ce(data), rel=1e-5)
    assert figures["val/ce_spliced"] == pytest.approx(reference_ce(data, lambda x: 0.5 * x), rel=1e-5)
    spared = reference_ce(data, lambda x: torch.where(sinks, x, 0.5 * x))
    assert figures["val/ce_spliced_no_sinks"] == pytest.approx(spared, rel=1e-5)
    assert figures["val/ce_zero"] == pytest.approx(reference_ce(data, lambda x: 0 * x), rel=1e-5)
    spared = reference_ce(data, lambda x: torch.where(sinks, x, 0 * x))
    assert figures["val/ce_zero_no_sinks"] == pytest.approx(spared, rel=1e-5)
    assert figures["val/ce_mean"] == pytest.approx(reference_ce(data, lambda x: mean.expand_as(x)), rel=1e-5)
    # 2 batches of 5 rows of 8 targets, one of them in each batch the end of a document.
    assert figures["val/ce_tokens"] == 2 * (5 * 8 - 1)
    values = {name.removeprefix("val/"): value for name, value in figures.items()}
    expected = (values["ce_zero"] - values["ce_spliced"]) / (values["ce_zero"] - values["ce_clean"])
    assert values["ce_recovered"] == pytest.approx(expected, rel=1e-5)


def test_kl_is_a_mean_over_the_predictions_that_count(data):
    figures = validate(data, sae=Replace(0.5))
    model, tokens = data.language_model, data.tokens.flatten(0, 1)
    with model.intervene(SITE.site, lambda x: 0.5 * x):
        spliced = model.logits(tokens).log_softmax(-1)
    kl = functional.kl_div(spliced, model.logits(tokens).log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert figures["val/kl"] == pytest.approx(kl[:, :-1][tokens[:, 1:] >= 2].mean().item(), rel=1e-5)


def test_every_dictionary_is_measured_by_itself(data):
    figures = validate(data, good=Replace(0.9), bad=Replace(0.1))
    for name, factor in (("good", 0.9), ("bad", 0.1)):
        alone = validate(data, sae=Replace(factor))
        for key, value in alone.items():
            assert figures[f"{name}/{key}"] == value, key


def test_a_crosscoder_is_spliced_in_at_all_its_sites(data):
    identity = validate(data, sae=Replace(1.0, 0.0, MLP, LAST))
    assert identity["val/ce_recovered"] == 1
    figures = validate(data, sae=Replace(0.5, 0.0, MLP, LAST))
    # Half of what the model has there by itself, not of what it has once the first site is changed.
    captured = data.language_model.capture(data.tokens.flatten(0, 1), [MLP.site, LAST.site])
    halves = {site: lambda _, half=0.5 * captured[site.site]: half for site in (MLP, LAST)}
    assert figures["val/ce_spliced"] == pytest.approx(reference_ce(data, halves), rel=1e-5)
    assert figures["val/ce_zero"] == pytest.approx(reference_ce(data, lambda x: 0 * x, MLP, LAST), rel=1e-5)


def test_a_transcoder_is_spliced_in_where_it_predicts(data):
    value = torch.linspace(-1, 1, D)
    figures = validate(data, sae=Constant(value))
    assert figures["val/ce_spliced"] == pytest.approx(reference_ce(data, lambda x: value.expand_as(x), MLP), rel=1e-5)
    assert figures["val/ce_zero"] == pytest.approx(reference_ce(data, lambda x: 0 * x, MLP), rel=1e-5)


def test_each_site_has_its_own_ablation(data):
    saes = {"here": Replace(0.5), "again": Replace(0.1), "there": Replace(0.5, 0.0, LAST)}
    figures = validate(data, **saes, transcoder=Constant(torch.zeros(D)))
    for name, site in (("here", SITE), ("again", SITE), ("there", LAST), ("transcoder", MLP)):
        zero = reference_ce(data, lambda x: 0 * x, site)
        assert figures[f"{name}/val/ce_zero"] == pytest.approx(zero, rel=1e-5), name
    assert figures["here/val/ce_zero"] != figures["there/val/ce_zero"]
    assert figures["transcoder/val/ce_recovered"] == pytest.approx(0, abs=1e-5)


def test_of_two_models_the_first_is_spliced(data):
    both, alone = Replace(0.5, 0.0, SITE, ELSEWHERE), Replace(0.5)
    figures, expected = validate(data, sae=both), validate(data, sae=alone)
    assert figures == {name: pytest.approx(value, rel=1e-6) for name, value in expected.items()}


def test_a_dictionary_of_the_other_model_alone_says_nothing_of_the_first(data):
    figures = validate(data, here=Replace(0.5), chat=Replace(0.5, 0.0, ELSEWHERE))
    alone = validate(data, sae=Replace(0.5))
    for key, value in alone.items():
        assert figures[f"here/{key}"] == pytest.approx(value, rel=1e-6)
    chat = {key: value for key, value in figures.items() if key.startswith("chat/")}
    assert not chat or chat["chat/val/ce_spliced"] == chat["chat/val/ce_clean"]
    assert not any(math.isinf(value) for value in chat.values())


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_rows_at_once_change_nothing(data, batch_rows):
    figures = validate(data, LanguageModelMetrics(batch_rows=batch_rows), sae=Replace(0.5))
    other = validate(data, sae=Replace(0.5))
    assert figures == {name: pytest.approx(value, rel=1e-5) for name, value in other.items()}


@pytest.mark.parametrize("max_rows", [3, 7])
def test_max_rows_takes_the_first_rows(data, max_rows):
    figures = validate(data, LanguageModelMetrics(max_rows=max_rows), sae=Replace(0.5))
    rows = data.tokens.flatten(0, 1)[:max_rows]
    assert figures["val/ce_tokens"] == (rows[:, 1:] >= 2).sum()
    data.tokens = rows[None]
    assert figures["val/ce_spliced"] == pytest.approx(reference_ce(data, lambda x: 0.5 * x), rel=1e-5)
    assert figures["val/ce_zero"] == pytest.approx(reference_ce(data, lambda x: 0 * x), rel=1e-5)


def test_ablations_are_computed_once_while_the_rows_stay_the_same(data, monkeypatch):
    passes = []
    logits = LanguageModel.logits
    monkeypatch.setattr(LanguageModel, "logits", lambda self, tokens: passes.append(1) or logits(self, tokens))
    callback = LanguageModelMetrics()
    module = dictionaries(a=Replace(0.9), b=Replace(0.1))
    trainer = a_trainer(callback)
    first = trainer.validate(module, data, verbose=False)[0]
    assert len(passes) == 2 * (1 + 2 * 2 + 3)
    # As within one fit: another epoch without another `setup`.
    monkeypatch.setattr(LanguageModelMetrics, "setup", lambda *_args, **_kwargs: None)
    passes.clear()
    assert trainer.validate(module, data, verbose=False)[0] == first
    assert len(passes) == 2 * (1 + 2 * 2)
    other = Rows(data.language_model, seed=1)
    again = trainer.validate(module, other, verbose=False)[0]
    mean = other.mean_without_sinks()
    assert again["a/val/ce_mean"] == pytest.approx(reference_ce(other, lambda x: mean.expand_as(x)), rel=1e-5)


def test_half_precision_models_are_measured_in_full(data):
    figures = validate(Rows(tiny_llama(torch.bfloat16)), sae=Replace(0.5))
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["val/ce_clean"] == pytest.approx(validate(data, sae=Replace(0.5))["val/ce_clean"], rel=0.02)


def tiny_bert() -> LanguageModel:
    config = BertConfig(
        hidden_size=D, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=VOCABULARY
    )
    return LanguageModel("tiny-bert", None, config, BertModel(config).eval(), False)


@pytest.mark.parametrize(
    ("model", "why"), [(tiny_bert, "tiny-bert has no next-token head"), (lambda: None, "there is no language model")]
)
def test_without_next_token_predictions_it_says_so_and_logs_nothing(model, why, caplog):
    with caplog.at_level(logging.INFO):
        assert validate(Rows(model()), sae=Replace(1.0)) == {}
    assert len([record for record in caplog.records if why in record.message]) == 1


def test_it_asks_for_the_whole_model():
    assert LanguageModelMetrics.needs_full_language_model


@pytest.mark.parametrize("setting", ["max_rows", "batch_rows"])
def test_settings_have_to_be_positive(setting):
    with pytest.raises(ConfigError, match=f"{setting} is 0; write 1 or more"):
        LanguageModelMetrics(**{setting: 0})
