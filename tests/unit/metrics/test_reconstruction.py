import math

import pytest
import torch
from torch import nn

from lightsae.metrics import FractionOfVarianceExplained, ReconstructionStatistics

D = 24


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(500, D, generator=torch.Generator().manual_seed(0))


def noisy(x: torch.Tensor, scale: float, seed: int = 1) -> torch.Tensor:
    return x + scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def statistics(x: torch.Tensor, x_hat: torch.Tensor, fired=None, sinks=None, batches: int = 1) -> dict:
    metric = ReconstructionStatistics(x.shape[1])
    fired = torch.ones(len(x)) if fired is None else fired
    sinks = torch.zeros(len(x), dtype=torch.bool) if sinks is None else sinks
    for part in zip(*(t.chunk(batches) for t in (x, x_hat, fired, sinks)), strict=True):
        metric.update(*part)
    return {name: value.item() for name, value in metric.compute().items()}


def reference_fve(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    x, x_hat = x.double(), x_hat.double()
    return (1 - (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item()


@pytest.mark.parametrize(("mean", "scale"), [(25.0, 1.0), (0.0, 1.0), (25.0, 1e4), (1e4, 1.0), (25e-4, 1e-4)])
@pytest.mark.parametrize("batches", [1, 7])
def test_predicting_the_mean_explains_nothing(x, mean, scale, batches):
    x = mean + scale * x
    x_hat = x.double().mean(0).float().expand_as(x)
    metric = FractionOfVarianceExplained(D)
    for a, b in zip(x.chunk(batches), x_hat.chunk(batches), strict=True):
        metric.update(a, b)
    assert metric.compute().item() == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_fve_of_any_dtype_is_that_of_the_values_given(x, dtype, scale):
    # 1e4 times a standard normal still fits float16; its square does not.
    x = (scale * x).to(dtype)
    x_hat = noisy(x, 0.3 * scale).to(dtype)
    assert statistics(x, x_hat, batches=3)["fve"] == pytest.approx(reference_fve(x, x_hat), abs=1e-6)


def test_perfect_is_one_and_zeros_are_below_zero_for_a_far_mean(x):
    assert statistics(x, x)["fve"] == 1
    assert statistics(x + 25, torch.zeros_like(x))["fve"] < -100


def test_fve_is_pooled_not_averaged(x):
    # Two batches far apart: each explains nothing of its own spread, both together most of the whole.
    x = torch.cat([x, x + 100])
    x_hat = torch.cat([x[:500].mean(0).expand(500, D), x[500:].mean(0).expand(500, D)])
    assert statistics(x, x_hat, batches=2)["fve"] == pytest.approx(reference_fve(x, x_hat), abs=1e-9)
    assert statistics(x, x_hat, batches=2)["fve"] > 0.99


def test_other_figures_against_their_definitions(x):
    x_hat, fired = 0.5 * noisy(x + 1, 0.2), torch.arange(len(x))
    found = statistics(x + 1, x_hat, fired, batches=4)
    x = x + 1
    assert found["mse"] == pytest.approx((x - x_hat).square().mean().item(), rel=1e-6)
    assert found["l0"] == pytest.approx(249.5)
    bias = x_hat.square().sum(1).mean() / (x * x_hat).sum(1).mean()
    assert found["relative_reconstruction_bias"] == pytest.approx(bias.item(), rel=1e-6)
    assert found["cosine"] == pytest.approx(nn.functional.cosine_similarity(x, x_hat).mean().item(), rel=1e-6)


def test_shrinkage_is_seen_by_the_bias_alone(x):
    found = statistics(x, 0.8 * x)
    assert found["relative_reconstruction_bias"] == pytest.approx(0.8, rel=1e-6)
    assert found["cosine"] == pytest.approx(1, rel=1e-6)


def test_a_reconstruction_of_zeros_has_cosine_zero(x):
    assert statistics(x, torch.zeros_like(x))["cosine"] == 0


def test_sinks_lift_fve_and_no_sinks_ignores_them(x):
    sinks = torch.arange(len(x)) % 50 == 0
    x = torch.where(sinks[:, None], 1000 + x, x)
    x_hat = torch.where(sinks[:, None], x, noisy(x, 1.0))
    found = statistics(x, x_hat, sinks=sinks, batches=5)
    without = statistics(x[~sinks], x_hat[~sinks])
    assert found["fve"] == pytest.approx(reference_fve(x, x_hat), abs=1e-6)
    assert found["fve"] > 0.99
    assert found["fve_no_sinks"] < 0.1
    for name in ("fve", "mse", "cosine", "relative_reconstruction_bias"):
        assert found[f"{name}_no_sinks"] == pytest.approx(without[name], rel=1e-6), name


def test_batches_of_sinks_alone_and_empty_groups_do_no_harm(x):
    sinks = torch.arange(len(x)) < 100
    found = statistics(x, noisy(x, 0.5), sinks=sinks, batches=5)
    assert found["fve"] == pytest.approx(reference_fve(x, noisy(x, 0.5)), abs=1e-9)
    assert math.isnan(statistics(x, x, sinks=torch.ones(len(x), dtype=torch.bool))["fve_no_sinks"])


def test_masked_tokens_do_not_count_even_if_infinite(x):
    mask = torch.arange(len(x)) % 3 > 0
    x_hat = noisy(x, 0.5)
    metric = FractionOfVarianceExplained(D)
    metric.update(torch.where(mask[:, None], x, math.inf), x_hat, mask)
    assert metric.compute().item() == pytest.approx(reference_fve(x[mask], x_hat[mask]), abs=1e-6)


def test_two_halves_merge_into_the_whole(x):
    x = x + torch.arange(len(x))[:, None]
    x_hat, sinks = noisy(x, 2.0), torch.arange(len(x)) % 20 == 0
    whole, first, second = (ReconstructionStatistics(D) for _ in range(3))
    whole.update(x, x_hat, torch.ones(len(x)), sinks)
    first.update(x[:123], x_hat[:123], torch.ones(123), sinks[:123])
    second.update(x[123:], x_hat[123:], torch.ones(377), sinks[123:])
    first.merge_state(second)
    for name, value in whole.compute().items():
        assert first.compute()[name].item() == pytest.approx(value.item(), rel=1e-7), name


def test_ranks_merge_as_halves_do(x):
    """What torchmetrics does over ranks: gather the states, stack them, reduce."""
    x_hat = noisy(x, 0.5)
    whole, *ranks = (ReconstructionStatistics(D) for _ in range(4))
    whole.update(x, x_hat, torch.ones(len(x)))
    for metric, a, b in zip(ranks[:2], x.split(300), x_hat.split(300), strict=True):
        metric.update(a, b, torch.ones(len(a)))
    # The third rank has seen nothing.
    gathered = torch.stack([metric.packed for metric in ranks])
    ranks[0].packed = ranks[0]._reductions["packed"](gathered)
    assert ranks[0].compute()["fve"].item() == pytest.approx(whole.compute()["fve"].item(), abs=1e-9)
    torch.testing.assert_close(ranks[0].packed, whole.packed, rtol=1e-6, atol=1e-6)


def test_many_batches_do_not_drift():
    metric, generator = FractionOfVarianceExplained(4), torch.Generator().manual_seed(0)
    batches = [100 + torch.randn(16, 4, generator=generator) for _ in range(400)]
    for batch in batches:
        metric.update(batch, noisy(batch, 0.1))
    everything = torch.cat(batches)
    assert metric.compute().item() == pytest.approx(
        reference_fve(everything, torch.cat([noisy(b, 0.1) for b in batches])), abs=1e-7
    )


def test_moving_to_half_precision_leaves_the_sums_alone(x):
    """As `bf16-true` does to every submodule."""
    holder = nn.Module()
    holder.metric = ReconstructionStatistics(D)
    for move in (lambda m: m.to(torch.bfloat16), nn.Module.half, lambda m: m.type(torch.float16)):
        move(holder)
        assert holder.metric.packed.dtype == torch.float64
    holder.metric.set_dtype(torch.float16)
    holder.metric.update(x, noisy(x, 0.3), torch.ones(len(x)))
    assert holder.metric.compute()["fve"].item() == pytest.approx(reference_fve(x, noisy(x, 0.3)), abs=1e-6)
    holder.metric.reset()
    assert holder.metric.packed.dtype == torch.float64


def test_autocast_changes_nothing(x):
    x, x_hat = x + 25, noisy(x + 25, 0.3)
    plain = statistics(x, x_hat)
    with torch.autocast("cpu", torch.bfloat16):
        assert statistics(x, x_hat) == plain


def test_reset_forgets(x):
    metric = FractionOfVarianceExplained(D)
    metric.update(x, torch.zeros_like(x))
    metric.reset()
    metric.update(x, x)
    assert metric.compute() == 1
