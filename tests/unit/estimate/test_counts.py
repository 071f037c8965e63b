"""What is counted from shapes, against what PyTorch counts while it computes, and against models that are loaded."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.estimate import Machine, RunPlan, forecast, language_model_costs, sae_costs
from lightsae.estimate.counts import splicing_flops
from lightsae.estimate.forecast import seconds_of
from lightsae.lm import LanguageModel
from lightsae.sae import (
    BatchTopK,
    Gated,
    JumpReLU,
    LatentUsage,
    Refinements,
    ReLU,
    SparseAutoencoder,
    TopK,
    Widths,
)
from lightsae.training.entries import merge_coefficients
from lightsae.training.module import SAEModule

T, D, F = 64, 32, 256
CASES: dict[str, Callable[[Widths], SparseAutoencoder]] = {
    "ReLU": lambda w: ReLU(w, F),
    "JumpReLU": lambda w: JumpReLU(w, F),
    "Gated": lambda w: Gated(w, F),
    "TopK": lambda w: TopK(w, F, k=4),
    "TopK multi": lambda w: TopK(w, F, k=4, multi_k=16),
    "TopK second step": lambda w: TopK(w, F, k=4, refinements=Refinements(second_step=0.3)),
    "BatchTopK": lambda w: BatchTopK(w, F, k=4),
}


@pytest.mark.parametrize("name", CASES)
def test_products_with_whole_matrices_are_those_that_pytorch_counts(name: str) -> None:
    sae, x = CASES[name](Widths.of(D)), torch.randn(T, D)
    usage, coefficients = LatentUsage(F, 10**6), merge_coefficients(sae)
    with FlopCounterMode(display=False) as counter:
        terms = sae.loss_terms(x, sae(x), usage)
        torch.stack([coefficients[term].value * value for term, value in terms.items()]).sum().backward()
    costs = sae_costs(sae)
    # It also counts products of a vector (the decoder's bias through the encoder), and rows that fire in part.
    assert T * costs.dense <= counter.get_total_flops() <= 1.04 * T * costs.dense + T * costs.sparse
    assert costs.parameters == sum(parameter.numel() for parameter in sae.parameters())


def plan(data: ActivationDataModule, sae: Callable[[Widths], SparseAutoencoder], **settings: Any) -> RunPlan:
    with torch.device("meta"):
        saes = SAEModule(sae).build(data)
    return RunPlan(data, saes, **({"steps": 10} | settings))


def test_a_language_model_counts_up_to_its_site(tiny_text: Any) -> None:
    data = ActivationDataModule(tiny_text.model, "resid_post.0", tiny_text.corpus, context_size=16)
    run = plan(data, CASES["TopK"])
    cut, whole = language_model_costs(run, whole=False), language_model_costs(run, whole=True)
    for costs, sites in ((cut, ["resid_post.0"]), (whole, None)):
        loaded = LanguageModel.from_pretrained(tiny_text.model, sites=sites)
        assert costs.parameters == sum(parameter.numel() for parameter in loaded.model.parameters())
    # A block of a Llama of width 12, 16 neurons and 2 heads: 4 matrices of attention, 3 of the MLP; scores and sums.
    block = 2 * (4 * 12 * 12 + 3 * 12 * 16) + 2 * 2 * 16 * 12
    assert cut.site == whole.site == block
    head = 2 * 12 * whole.vocabulary
    assert whole.whole == 2 * block + head
    # The untouched pass, the blocks before the site once; two passes for the SAE; three for the ablations and once more
    # the blocks before it.
    above = block + head
    assert splicing_flops(run, whole, first=False) == 16 * (block + above * 3)
    assert splicing_flops(run, whole, first=True) == 16 * (2 * block + above * 6)


@pytest.mark.parametrize(("quantization", "size"), [("8bit", 1), ("4bit", 0.5625)])
def test_rounded_weights_take_less_memory(tiny_text: Any, quantization: Any, size: float) -> None:
    text = {"model": tiny_text.model, "site": "resid_post.0", "dataset": tiny_text.corpus, "context_size": 16}
    plain, rounded = (ActivationDataModule(**text, quantization=one) for one in (None, quantization))
    memory = []
    for data in (plain, rounded):
        run = plan(data, CASES["TopK"])
        costs, machine = language_model_costs(run, whole=True), Machine(flops=1e9, bandwidth=1e9)
        seconds = seconds_of(machine, run, costs)
        figures = forecast(run, costs, seconds, device=torch.device("meta"), dtype=torch.float32)
        memory.append(figures.memory["language_model"])
    # 4 matrices of attention and 3 of the MLP in each of two blocks; the head and all else stay.
    assert memory[0] - memory[1] == 2 * (4 * 12 * 12 + 3 * 12 * 16) * (4 - size)


@pytest.mark.parametrize("settings", [{"device": "cuda:1"}, {"device_map": "auto"}])
def test_a_model_elsewhere_takes_no_memory_here(tiny_text: Any, settings: dict[str, Any]) -> None:
    text = {"model": tiny_text.model, "site": "resid_post.0", "dataset": tiny_text.corpus, "context_size": 16}
    memory = []
    for chosen in ({}, settings):
        run = plan(ActivationDataModule(**text, **chosen), CASES["TopK"])
        costs = language_model_costs(run, whole=False)
        seconds = seconds_of(Machine(flops=1e9, bandwidth=1e9), run, costs)
        memory.append(forecast(run, costs, seconds, device=torch.device("cuda:0"), dtype=torch.float32).memory)
    here, elsewhere = memory
    assert (here["language_model_elsewhere"], elsewhere["language_model"]) == (0, 0)
    assert elsewhere["language_model_elsewhere"] == here["language_model"] > 0
    assert elsewhere["peak"] < here["peak"]


def test_a_plan_is_what_the_run_does(activation_file: Callable[..., str]) -> None:
    data = ActivationDataModule(activations=activation_file(2000), batch_tokens=64, buffer_tokens=512, val_tokens=128)
    run = plan(data, CASES["ReLU"], steps=30, devices=2, accumulated=3)
    assert (run.batches, run.tokens) == (90, 90 * 64 * 2)
    trained = data.source.fill_tokens(2)
    assert run.fills == -(-90 // (trained // 64))
    assert run.validation_tokens == 64


def test_hours_memory_and_cost_add_up(activation_file: Callable[..., str]) -> None:
    data = ActivationDataModule(activations=activation_file(2000), batch_tokens=64, buffer_tokens=512)
    run = plan(data, CASES["ReLU"], steps=1000, devices=4, validations=0, saves=0)
    costs = language_model_costs(run, whole=False)
    machine = Machine(flops=1e9, bandwidth=1e9)
    seconds = seconds_of(machine, run, costs)
    meta = torch.device("meta")
    result = forecast(run, costs, seconds, device=meta, dtype=torch.float32, price_per_hour=3.0)
    weights = 4 * (2 * 8 * F + F + 8)
    assert result.memory["sae_adam"] == 2 * result.memory["sae_weights"] == 2 * weights
    assert result.memory["activation_buffer"] == data.source.fill_tokens(4) * 8 * 4
    products = 64 * 5 * 2 * 8 * F / 1e9
    assert seconds.per_step_batch > products
    assert result.total_seconds == pytest.approx(1000 * seconds.per_step_batch)
    assert result.cost == pytest.approx(3.0 * 4 * result.total_seconds / 3600)
    assert result.tokens_per_second == pytest.approx(run.tokens / result.total_seconds)
    twice = seconds_of(Machine(flops=2e9, bandwidth=2e9), run, costs)
    assert twice.per_step_batch == pytest.approx(seconds.per_step_batch / 2)


def test_a_synthetic_world_has_no_language_model() -> None:
    data = ActivationDataModule(dataset="synthetic")
    costs = language_model_costs(plan(data, CASES["TopK"]), whole=True)
    assert SimpleNamespace(**costs.__dict__) == SimpleNamespace(
        parameters=0, site=0, whole=0, below=0, vocabulary=0, hidden=0, rounded=0, rounded_bytes=0
    )
