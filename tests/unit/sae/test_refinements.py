"""Aligned training, a second step, the tilted mean, and pruning at inference: each as its formula says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae import BatchTopK, LatentUsage, Refinements, ReLU, SparseAutoencoder, SparseLatents, TopK, Widths
from lightsae.sae.refinements import NO_REFINEMENTS, align

T, D, F = 9, 6, 13
Make = Callable[..., Any]
Weights = dict[str, Tensor]
BUILD: dict[str, Callable[[Refinements], SparseAutoencoder]] = {
    "ReLU": lambda r: ReLU(Widths.of(D), F, refinements=r),
    "ReLU unit": lambda r: ReLU(Widths.of(D), F, "unit", refinements=r),
    "TopK": lambda r: TopK(Widths.of(D), F, k=4, refinements=r),
    "BatchTopK": lambda r: BatchTopK(Widths.of(D), F, k=4, refinements=r),
}


@pytest.fixture
def x(normal: Make) -> Tensor:
    return normal(T, D, seed=1) + 3


def encoded(x: Tensor, w: Weights, kind: str) -> Tensor:
    pre = (x if kind == "ReLU" else x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    edge: Any = 0.0
    if kind == "TopK":
        edge = pre.sort(dim=1, descending=True).values[:, 3:4]
    elif kind == "BatchTopK":
        edge = pre.flatten().sort(descending=True).values[T * 4 - 1]
    return torch.where((pre >= edge) & (pre > 0), pre, 0)


def squared_errors(x: Tensor, latents: Tensor, w: Weights) -> Tensor:
    return ((x - latents @ w["W_dec"] - w["b_dec"]) ** 2).sum(1)


def mse(x: Tensor, errors_mean: Tensor, kind: str) -> Tensor:
    if kind.startswith("ReLU"):
        return errors_mean / D if kind == "ReLU unit" else errors_mean
    return errors_mean / ((x - x.mean(0)) ** 2).sum(1).mean()


def test_by_default_there_are_none(x: Tensor) -> None:
    assert Refinements() == NO_REFINEMENTS
    sae = TopK(Widths.of(D), F, k=4)
    assert sae.refinements is NO_REFINEMENTS


# -- aligned ---------------------------------------------------------------------------------------------------------


def test_align_makes_each_product_one_by_the_shortest_way(normal: Make) -> None:
    W_enc, W_dec = normal(D, F, seed=1), normal(F, D, seed=2)
    before = W_enc.clone()
    align(W_enc, W_dec)
    for i in range(F):
        assert float(W_enc[:, i] @ W_dec[i]) == pytest.approx(1)
        # Along the row, and so by as little as possible: |1 - product| / |d_i|.
        moved = W_enc[:, i] - before[:, i]
        assert float(moved.norm()) == pytest.approx(abs(1 - float(before[:, i] @ W_dec[i])) / float(W_dec[i].norm()))
    again = W_enc.clone()
    align(again, W_dec)
    torch.testing.assert_close(again, W_enc)


def test_align_leaves_a_latent_without_direction_alone(normal: Make) -> None:
    W_enc, W_dec = normal(D, F, seed=1), normal(F, D, seed=2)
    W_dec[3] = 0
    before = W_enc[:, 3].clone()
    align(W_enc, W_dec)
    assert torch.equal(W_enc[:, 3], before)
    assert W_enc.isfinite().all()


@pytest.mark.parametrize("kind", BUILD)
def test_it_holds_from_the_start_and_after_every_step(arbitrary: Make, normal: Make, kind: str) -> None:
    sae = BUILD[kind](Refinements(aligned=True))
    x = normal(64, D, seed=3).float() + 2

    def products() -> Tensor:
        return (sae.W_enc.T * sae.W_dec).sum(1).detach()

    torch.testing.assert_close(products(), torch.ones(F), rtol=0, atol=1e-5)
    sae.start_from({next(iter(sae.widths.read)): x}, "sqrt_d", torch.Generator().manual_seed(0))
    torch.testing.assert_close(products(), torch.ones(F), rtol=0, atol=1e-4)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    for _ in range(3):
        output = sae(x)
        sum(sae.loss_terms(x, output, LatentUsage(F, 10)).values()).backward()
        sae.observe(output)
        optimizer.step()
        assert (products() - 1).abs().max() > 1e-4
        sae.commit()
        torch.testing.assert_close(products(), torch.ones(F), rtol=0, atol=1e-4)


# -- second step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BUILD)
def test_the_second_step_and_its_gradients_follow_the_formula(
    arbitrary: Make, agree: Make, weights_of: Make, x: Tensor, kind: str
) -> None:
    """z = f(x + eta (x - x_hat)) with the same encoder, and gradients through both steps."""
    sae = arbitrary(BUILD[kind](Refinements(second_step=0.3)))
    w = weights_of(sae)

    def both_steps(w: Weights) -> Tensor:
        residual = 0.4 * x - encoded(0.4 * x, w, kind) @ w["W_dec"] - w["b_dec"]
        return encoded(0.4 * x + 0.3 * residual, w, kind)

    def reference(w: Weights) -> Tensor:
        return mse(0.4 * x, squared_errors(0.4 * x, both_steps(w), w).mean(), kind)

    torch.testing.assert_close(sae.encode(x), both_steps(w), rtol=1e-10, atol=1e-12)
    assert not torch.equal(sae.encode(x), encoded(0.4 * x, w, kind))
    agree(sae, x, x, "mse", reference)


@pytest.mark.parametrize("kind", BUILD)
def test_gradients_to_the_input_are_those_of_both_steps(arbitrary: Make, x: Tensor, kind: str) -> None:
    """As attributions need them."""
    sae = arbitrary(BUILD[kind](Refinements(second_step=0.3))).eval()
    assert torch.autograd.gradcheck(lambda raw: sae(raw).x_hat, (x.clone().requires_grad_(),))


def test_it_holds_at_inference_too(arbitrary: Make, weights_of: Make, x: Tensor) -> None:
    sae = arbitrary(BUILD["ReLU"](Refinements(second_step=0.3)))
    assert torch.equal(sae.encode(x), sae.eval().encode(x))


# -- tilt ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BUILD)
def test_the_tilted_mean_and_its_gradients_follow_the_formula(
    arbitrary: Make, agree: Make, weights_of: Make, x: Tensor, kind: str
) -> None:
    sae, w = arbitrary(BUILD[kind](Refinements(tilt=0.8))), None
    w = weights_of(sae)
    now = squared_errors(0.4 * x, encoded(0.4 * x, w, kind), w)
    weights = [float((0.8 * error / now.mean()).exp()) for error in now]
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)

    def reference(w: Weights) -> Tensor:
        return mse(0.4 * x, (share * squared_errors(0.4 * x, encoded(0.4 * x, w, kind), w)).sum(), kind)

    agree(sae, x, x, "mse", reference)


def test_the_tilt_is_towards_large_errors_and_its_unit_does_not_matter(normal: Make) -> None:
    errors = normal(50, seed=3).square()
    plain, little, much = (Refinements(tilt=tilt).mean(errors) for tilt in (0.0, 0.1, 2.0))
    assert plain == errors.mean()
    assert plain < little < much < errors.max()
    torch.testing.assert_close(Refinements(tilt=2.0).mean(1000 * errors), 1000 * much)


def test_where_nothing_is_left_to_explain_the_tilt_is_finite() -> None:
    errors = torch.zeros(5, requires_grad=True)
    value = Refinements(tilt=2.0).mean(errors)
    value.backward()
    assert value == 0
    torch.testing.assert_close(errors.grad, torch.full((5,), 0.2))


# -- pruning ---------------------------------------------------------------------------------------------------------


def pruned(x: Tensor, latents: Tensor, w: Weights, threshold: float) -> Tensor:
    """Leave each latent out in turn: it goes where what is then left points along it by less than the threshold."""
    kept = latents.clone()
    for t, token in enumerate(latents):
        for i in token.nonzero().flatten().tolist():
            without = token.clone()
            without[i] = 0
            residual = x[t] - without @ w["W_dec"] - w["b_dec"]
            if residual @ w["W_dec"][i] < threshold:
                kept[t, i] = 0
    return kept


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("threshold", [-5.0, 0.3, 1.5, 1e6])
def test_pruning_leaves_each_latent_out_in_turn(
    arbitrary: Make, weights_of: Make, x: Tensor, kind: str, threshold: float
) -> None:
    sae = arbitrary(BUILD[kind](Refinements(prune=threshold))).eval()
    if kind == "BatchTopK":
        sae.mechanism.threshold.fill_(0.5)
    with torch.no_grad():
        w = weights_of(sae)
        latents = encoded(0.4 * x, w, kind)
        if kind == "BatchTopK":
            pre = (0.4 * x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
            latents = torch.where(pre >= 0.5, pre, 0)
        expected = pruned(0.4 * x, latents, w, threshold)
        torch.testing.assert_close(sae.encode(x), expected, rtol=1e-10, atol=1e-12)
        x_hat = (expected @ w["W_dec"] + w["b_dec"]) / 0.4
        torch.testing.assert_close(sae(x).x_hat, x_hat, rtol=1e-10, atol=1e-10)
        if threshold == 0.3:
            assert 0 < expected.count_nonzero() < latents.count_nonzero()
        assert threshold < 1e6 or not expected.any()


@pytest.mark.parametrize("kind", BUILD)
def test_in_training_nothing_is_pruned(arbitrary: Make, weights_of: Make, x: Tensor, kind: str) -> None:
    sae = arbitrary(BUILD[kind](Refinements(prune=0.3)))
    torch.testing.assert_close(sae.encode(x), encoded(0.4 * x, weights_of(sae), kind), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", BUILD)
def test_gradients_pass_through_what_pruning_leaves(arbitrary: Make, x: Tensor, kind: str) -> None:
    sae = arbitrary(BUILD[kind](Refinements(prune=0.3))).eval()
    raw = x.clone().requires_grad_()
    output = sae(raw)
    output.x_hat.sum().backward()
    assert raw.grad is not None
    silent = ~(output.dense_latents() > 0).any(1)
    assert (raw.grad[silent] == 0).all()
    assert raw.grad[~silent].abs().sum() > 0


@pytest.mark.parametrize("layout", ["rows", "ragged", "dense"])
def test_every_layout_is_pruned_alike(normal: Make, layout: str) -> None:
    dense = normal(T, F, seed=4).clamp_min(0)
    values, indices = dense.topk(4, dim=1)
    dense = torch.zeros_like(dense).scatter(1, indices, values)
    residual, W_dec = normal(T, D, seed=5), normal(F, D, seed=6)
    latents: Tensor | SparseLatents = dense
    if layout != "dense":
        latents = SparseLatents.from_dense(dense) if layout == "ragged" else SparseLatents.from_rows(values, indices, F)
    kept = NO_REFINEMENTS.pruned(latents, residual, W_dec, 5.0).to_dense()
    share = residual @ W_dec.T + dense * W_dec.square().sum(1)
    assert torch.equal(kept, torch.where(share >= 5.0, dense, 0))
    assert 0 < kept.count_nonzero() < dense.count_nonzero()


# -- what cannot work ------------------------------------------------------------------------------------------------


def test_a_step_backwards_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"refinements\.second_step is -0\.3; write 0 or more"):
        BUILD["TopK"](Refinements(second_step=-0.3))
