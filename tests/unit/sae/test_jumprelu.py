"""JumpReLU: gradients of its terms by numbers, thresholds under the penalty, half precision, and bad settings."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae import JumpReLU, LatentUsage, SparseAutoencoder, Widths
from lightsae.sae.straight_through import jump_relu, mean_count

T, D, F = 9, 6, 13
DEAD = (1, 4, 12)
BANDWIDTH = 0.8


@pytest.fixture
def make(arbitrary: Callable[[SparseAutoencoder], SparseAutoencoder]) -> Callable[..., SparseAutoencoder]:
    def build(**settings: object) -> SparseAutoencoder:
        sae = arbitrary(JumpReLU(Widths.of(D), F, bandwidth=BANDWIDTH, **settings))
        with torch.no_grad():
            sae.mechanism.log_threshold.copy_(torch.linspace(0.2, 0.9, F, dtype=torch.float64).log())
        return sae

    return build


def pre_of(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]


# -- what is differentiable ------------------------------------------------------------------------------------------


def test_pre_act_and_its_gradients_follow_the_formula(
    make: Callable[..., SparseAutoencoder], normal: Callable[..., Tensor], agree: Callable, with_dead: Callable
) -> None:
    sae, x = make(), normal(T, D, seed=1) + 1

    def term(w: dict[str, Tensor]) -> Tensor:
        missing = w["mechanism.log_threshold"].exp() - pre_of(w, x * sae.input_scale)
        norms = w["W_dec"].square().sum(1).sqrt()
        return sum((missing[:, i].clamp_min(0) * norms[i]).min() for i in DEAD)

    agree(sae, x, x, "pre_act", term, with_dead(F, DEAD))


def test_pre_act_is_zero_while_nothing_is_dead(
    make: Callable[..., SparseAutoencoder], normal: Callable[..., Tensor]
) -> None:
    sae, x = make(), normal(T, D)
    terms = sae.loss_terms(x, sae(x), LatentUsage(F, 10))
    assert terms["pre_act"] == 0
    sum(terms.values()).backward()


@pytest.mark.parametrize(
    ("settings", "term"), [({}, "mse"), ({"penalty": "tanh"}, "mse"), ({"penalty": "tanh"}, "tanh")]
)
def test_all_but_the_thresholds_learn_by_true_gradients(
    settings: dict, term: str, make: Callable[..., SparseAutoencoder], normal: Callable[..., Tensor]
) -> None:
    sae, x, names = make(**settings), normal(T, D, seed=1) + 1, ("W_enc", "W_dec", "b_enc", "b_dec")
    sae.loss_terms(x, sae(x), LatentUsage(F, 10))[term].backward()
    x = x * sae.input_scale
    theta = sae.mechanism.log_threshold.detach().exp()

    def value(w: dict[str, Tensor]) -> float:
        pre = pre_of(w, x)
        latents = torch.where(pre > theta, pre, 0)
        if term == "tanh":
            return (4 * latents * w["W_dec"].norm(dim=1)).tanh().sum(1).mean().item()
        return (x - latents @ w["W_dec"] - w["b_dec"]).square().mean().item()

    for name in names:
        parameter = getattr(sae, name)
        for place in range(parameter.numel()):
            sides = []
            for step in (1e-6, -1e-6):
                w = {other: getattr(sae, other).detach().clone() for other in names}
                w[name].view(-1)[place] += step
                sides.append(value(w))
            numeric = (sides[0] - sides[1]) / 2e-6
            assert parameter.grad.view(-1)[place].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8), (name, place)


# -- what is straight-through ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, 3.0])
def test_log_thresholds_learn_from_the_count_by_the_published_rule(
    target: float | None, make: Callable[..., SparseAutoencoder], normal: Callable[..., Tensor]
) -> None:
    sae, x = make(target_l0=target), normal(T, D, seed=1) + 1
    sae.loss_terms(x, sae(x), LatentUsage(F, 10))["l0_penalty"].backward()
    theta = sae.mechanism.log_threshold.detach().exp()
    with torch.no_grad():
        pre = pre_of({name: getattr(sae, name) for name in ("b_dec", "W_enc", "b_enc")}, x * sae.input_scale)
    slope = 1.0 if target is None else 2 * ((pre > theta).double().sum(1).mean() / target - 1) / target
    near = ((pre - theta).abs() < BANDWIDTH / 2).double().mean(0)
    assert 0 < near.mean() < 1, "the data does not test what it should"
    # d H / d log theta = theta * d H / d theta
    torch.testing.assert_close(sae.mechanism.log_threshold.grad, -slope * theta * near / BANDWIDTH)
    others = [parameter for name, parameter in sae.named_parameters() if "threshold" not in name]
    assert all(parameter.grad is None for parameter in others)


def test_log_thresholds_learn_from_the_error_by_the_published_rule(
    make: Callable[..., SparseAutoencoder], normal: Callable[..., Tensor]
) -> None:
    sae, x = make(), normal(T, D, seed=1) + 1
    output = sae(x)
    sae.loss_terms(x, output, LatentUsage(F, 10))["mse"].backward()
    theta = sae.mechanism.log_threshold.detach().exp()
    error = (x * sae.input_scale - output.x_hat_normalised).detach()
    of_latents = -2 / (T * D) * error @ sae.W_dec.detach().T
    near = (output.pre.detach() - theta).abs() < BANDWIDTH / 2
    expected = theta * (-(theta / BANDWIDTH) * near * of_latents).sum(0)
    torch.testing.assert_close(sae.mechanism.log_threshold.grad, expected)


# -- precision -------------------------------------------------------------------------------------------------------


def test_thresholds_get_float32_gradients_from_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    exact, theta = torch.randn(4096, 8, generator=generator), torch.full((8,), 0.5, requires_grad=True)
    rounded = exact.bfloat16().requires_grad_()
    out = jump_relu(rounded, theta, 1.0)
    assert out.dtype == torch.bfloat16
    count = mean_count(rounded, theta, 1.0)
    # Thousands of tokens add up to more than the digits of bfloat16 hold.
    assert count.item() == (rounded > theta).sum().item() / 4096
    (out.sum() + count).backward()
    assert rounded.grad.dtype == torch.bfloat16
    assert theta.grad.dtype == torch.float32
    near = ((rounded.detach().float() - 0.5).abs() <= 0.5).sum(0)
    torch.testing.assert_close(theta.grad, -0.5 * near - near / 4096)


# -- thresholds and settings -----------------------------------------------------------------------------------------


def test_what_fires_is_above_its_threshold_and_so_above_zero(
    make: Callable[..., SparseAutoencoder], normal: Callable[..., Tensor]
) -> None:
    sae = make()
    latents, theta = sae.encode(normal(200, D)), sae.mechanism.log_threshold.exp()
    assert (latents > 0).any()
    assert ((latents == 0) | (latents > theta)).all()


def test_a_target_above_the_count_lowers_thresholds(
    make: Callable[..., SparseAutoencoder], normal: Callable[..., Tensor]
) -> None:
    x = normal(200, D)
    for target, sign in ((0.5, -1), (float(F), 1)):
        sae = make(target_l0=target)
        sae.loss_terms(x, sae(x), LatentUsage(F, 10))["l0_penalty"].backward()
        grad = sae.mechanism.log_threshold.grad
        assert (sign * grad >= 0).all(), "a step goes against the gradient"
        assert grad.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_l0": 0.0}, r"target_l0 is 0\.0"),
        ({"target_l0": F + 1.0}, r"target_l0 is 14\.0; .*d_sae \(13\)"),
        ({"target_l0": 3.0, "penalty": "tanh"}, r"target_l0 goes with penalty step"),
        ({"bandwidth": 0.0}, r"bandwidth is 0\.0"),
        ({"start_l0": 0.0}, r"start_l0 is 0\.0"),
    ],
)
def test_settings_that_cannot_work(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JumpReLU(Widths.of(D), F, **settings)
