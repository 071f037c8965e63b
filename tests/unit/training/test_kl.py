"""The loss term kl: against the plain definition, what it needs, and what it brings."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from helpers.errors import refused
from lightsae.activations.batch import ActivationBatch
from lightsae.activations.datamodule import ActivationDataModule
from lightsae.errors import ConfigError
from lightsae.lm import LanguageModel
from lightsae.sae import SiteRef, SparseAutoencoder, TopK, Widths
from lightsae.training.kl import KL, kl_terms
from lightsae.training.module import SAEModule
from lightsae.training.schedules import Schedule

ROWS, CONTEXT = 3, 6


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path]) -> LanguageModel:
    return LanguageModel.from_pretrained(str(make_model("llama")), dtype="float32")


def kl_term(sae: SparseAutoencoder, model: LanguageModel, rows: ActivationBatch) -> Tensor:
    return kl_terms({"sae": sae}, model, rows)["sae"]


def rows_at(model: LanguageModel, site: str) -> ActivationBatch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 40, (ROWS, CONTEXT), generator=generator)
    values = model.capture(tokens, [site])[site].flatten(0, 1).clone()
    batch = ActivationBatch.without_text(
        SiteRef(model.name, site), values, torch.arange(ROWS).repeat_interleave(CONTEXT)
    )
    special = torch.zeros(len(values), dtype=torch.bool)
    special[[2, 8]] = True
    return replace(batch, tokens=tokens.flatten(), special=special, rows_shape=(ROWS, CONTEXT))


@pytest.mark.parametrize("site", ["resid_post.0", "mlp_out.1", "attn_out.1", "resid_pre.1"])
def test_value_and_gradient_are_those_of_the_definition(model: LanguageModel, site: str) -> None:
    rows = rows_at(model, site)
    sae = TopK(
        Widths({SiteRef(model.name, site): model.width(site)}, {SiteRef(model.name, site): model.width(site)}), 40, 5
    )
    kl_term(sae, model, rows).backward()
    gradients = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    assert gradients["W_dec"].abs().max() > 0

    sae.zero_grad()
    tokens = rows.tokens.reshape(ROWS, CONTEXT)
    (x,) = rows.activations.values()
    x_hat = sae(x).x_hat.reshape(ROWS, CONTEXT, -1)
    with torch.no_grad():
        clean = model.model(tokens).logits.log_softmax(-1)
    with model.intervene(site, lambda _: x_hat):
        spliced = model.model(tokens).logits.log_softmax(-1)
    kl = (clean.exp() * (clean - spliced)).sum(-1)[:, :-1]
    plain = kl[~rows.special.reshape(ROWS, CONTEXT)[:, 1:]].mean()
    torch.testing.assert_close(kl_term(sae, model, rows), plain)
    plain.backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, dict(sae.named_parameters())[name].grad, rtol=1e-4, atol=1e-7)


def test_several_saes_share_one_untouched_pass(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    early, late = rows_at(model, "resid_post.0"), rows_at(model, "resid_post.1")
    rows = replace(early, activations=early.activations | late.activations)
    saes = {}
    for layer, k in ((0, 5), (1, 3)):
        site = SiteRef(model.name, f"resid_post.{layer}")
        saes[str(layer)] = TopK(Widths.autoencoder(site, model.width(site.site)), 40, k)
    alone = {name: kl_term(sae, model, rows) for name, sae in saes.items()}
    passes, forward = [], model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda *args, **kwargs: passes.append(1) or forward(*args, **kwargs))
    together = kl_terms(saes, model, rows)
    assert len(passes) == 3
    for name, term in alone.items():
        torch.testing.assert_close(together[name], term)


def test_only_special_tokens_to_predict_cost_nothing(model: LanguageModel) -> None:
    rows = rows_at(model, "resid_post.0")
    site = Widths.autoencoder(SiteRef(model.name, "resid_post.0"), model.width("resid_post.0"))
    nothing = kl_term(TopK(site, 40, 5), model, replace(rows, special=torch.ones_like(rows.special)))
    assert float(nothing.detach()) == 0


class OnText:
    """A short fit on text, with what it logs and reads."""

    def __init__(self, text: Any, quiet: dict[str, Any], coefficients: dict[str, Any], **data: Any) -> None:
        settings: dict[str, Any] = {
            "model": text.model, "site": "resid_post.0", "dataset": text.corpus, "context_size": 8, "seed": 3,
            "batch_tokens": 64, "buffer_tokens": 256, "val_tokens": 16, "num_workers": 0,
        }  # fmt: skip
        self.module = SAEModule(lambda widths: TopK(widths, 40, 4), coefficients=coefficients, lr=0.01)
        self.data = ActivationDataModule(**(settings | data))
        self.trainer = Trainer(**(quiet | {"max_steps": 20, "log_every_n_steps": 1}))

    def fit(self) -> SparseAutoencoder:
        self.trainer.fit(self.module, self.data)
        return self.module.each_sae()["sae"]


def test_it_begins_late_and_loads_the_upper_blocks_then(tiny_text: Any, quiet: dict[str, Any]) -> None:
    run = OnText(tiny_text, quiet, {KL: Schedule(1.0, begin=0.75)})
    whole, train = [], run.module.training_step

    def watched(batch: ActivationBatch, batch_idx: int) -> dict[str, Any]:
        out = train(batch, batch_idx)
        assert run.data.language_model is not None
        whole.append(run.data.language_model.has_next_token_head)
        return out

    run.module.training_step = watched
    with_kl = run.fit()
    assert whole == [False] * 15 + [True] * 5
    without = OnText(tiny_text, quiet, {}).fit()
    never = OnText(tiny_text, quiet, {KL: Schedule(0.0)}).fit()
    assert torch.equal(without.W_dec, never.W_dec)
    assert not torch.equal(without.W_dec, with_kl.W_dec)


def test_it_is_refused_where_there_is_nothing_to_predict(
    tiny_text: Any, make_model: Callable[..., Path], activation_file: Callable[..., str], quiet: dict[str, Any]
) -> None:
    term = {KL: 1.0}
    with refused(ConfigError, "coefficients.kl .* there is none here"):
        OnText(tiny_text, quiet, term, activations=activation_file(500), dataset=None, site=None).fit()
    with refused(ConfigError, "coefficients.kl .* predicts no token"):
        OnText(tiny_text, quiet, term, model=str(make_model("bert"))).fit()
