"""Straight-through gradients by numbers, and what JumpReLU and Gated make of them, written the obvious way."""

import math

import pytest
import torch
from torch import Tensor

from lightsae.sae import Gated, JumpReLU, LatentUsage, SiteRef, Widths
from lightsae.sae.mechanisms.jumprelu import upper_quantile
from lightsae.sae.straight_through import jump_relu, mean_count

T, D, F = 30, 6, 10
SITE = SiteRef("", "activations")


@pytest.fixture
def pre() -> Tensor:
    return torch.randn(T, F, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def threshold() -> Tensor:
    return torch.linspace(0.1, 0.9, F, dtype=torch.float64)


@pytest.mark.parametrize("bandwidth", [0.1, 0.5, 3.0])
def test_gradients_are_the_published_ones(pre: Tensor, threshold: Tensor, bandwidth: float) -> None:
    pre.requires_grad_()
    threshold.requires_grad_()
    upstream = torch.randn(T, F, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = jump_relu(pre, threshold, bandwidth)
    grads = torch.autograd.grad(out, (pre, threshold), upstream)
    count = mean_count(pre, threshold, bandwidth)
    (of_count,) = torch.autograd.grad(count, threshold)
    expected_pre, expected_threshold, expected_of_count = torch.zeros(T, F), [0.0] * F, [0.0] * F
    above = 0
    for t in range(T):
        for i in range(F):
            z, theta = pre[t, i].item(), threshold[i].item()
            kernel = 1.0 if abs((z - theta) / bandwidth) <= 0.5 else 0.0
            assert out[t, i] == (z if z > theta else 0.0)
            above += z > theta
            expected_pre[t, i] = upstream[t, i].item() if z > theta else 0.0
            expected_threshold[i] += -(theta / bandwidth) * kernel * upstream[t, i].item()
            expected_of_count[i] += -(1 / bandwidth) * kernel / T
    assert count == above / T
    torch.testing.assert_close(grads[0], expected_pre.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads[1], torch.tensor(expected_threshold, dtype=torch.float64))
    torch.testing.assert_close(of_count, torch.tensor(expected_of_count, dtype=torch.float64))


def test_a_count_teaches_thresholds_alone(pre: Tensor, threshold: Tensor) -> None:
    pre.requires_grad_()
    threshold.requires_grad_()
    mean_count(pre, threshold, 1.0).backward()
    assert pre.grad is None
    assert (threshold.grad <= 0).all(), "a higher threshold lets fewer through"
    assert (threshold.grad < 0).any()


def test_the_quantile_leaves_its_share_above() -> None:
    values = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    assert ((values > upper_quantile(values, 0.02)).sum(0) == 20).all()


def started(sae: JumpReLU | Gated) -> tuple[JumpReLU | Gated, Tensor, LatentUsage]:
    generator = torch.Generator().manual_seed(3)
    x = 4 * torch.randn(T, D, generator=generator, dtype=torch.float64) + 3
    sae = sae.double()
    sae.reset_parameters(generator)
    sae.start_from({SITE: x}, "sqrt_d")
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    usage = LatentUsage(F, dead_after=10)
    usage.known_dead[:4] = True
    return sae, x, usage


@pytest.mark.parametrize("settings", [{}, {"penalty": "tanh"}, {"target_l0": 3.0}])
def test_jumprelu_terms(settings: dict) -> None:
    sae, x, usage = started(JumpReLU(Widths.of(D), F, start_l0=3.0, **settings))
    output = sae(x)
    terms = sae.loss_terms(x, output, usage)
    theta, norms = sae.mechanism.log_threshold.exp(), sae.W_dec.norm(dim=1)
    normalised = x * sae.input_scale
    z = (normalised - sae.b_dec) @ sae.W_enc + sae.b_enc
    f = torch.where(z > theta, z, 0)
    torch.testing.assert_close(output.dense_latents(), f)
    error = normalised - f @ sae.W_dec - sae.b_dec
    count = (z > theta).double().sum(1).mean()
    expected = {
        "mse": error.square().mean(),
        "pre_act": sum((theta[i] - z[:, i]).relu().min() * norms[i] for i in range(4)),
    }
    if "penalty" in settings:
        expected["tanh"] = (4 * f * norms).tanh().sum(1).mean()
    else:
        expected["l0_penalty"] = (count / 3 - 1) ** 2 if settings else count
    assert set(terms) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)


def test_gated_terms_and_their_gradients() -> None:
    sae, x, usage = started(Gated(Widths.of(D), F, start_l0=3.0))
    m, normalised = sae.mechanism, x * sae.input_scale

    def written_out(W_dec: Tensor, b_dec_frozen: Tensor) -> Tensor:
        centred = normalised - sae.b_dec
        pi = centred @ sae.W_enc + sae.b_enc
        f = (pi > 0) * (m.r_mag.exp() * (centred @ sae.W_enc) + m.b_mag).relu()
        mse = (normalised - f @ sae.W_dec - sae.b_dec).square().mean()
        l1 = (pi.relu() * sae.W_dec.norm(dim=1)).sum(1).mean()
        aux = (normalised - pi.relu() @ W_dec - b_dec_frozen).square().mean()
        return mse + 0.1 * l1 + aux

    terms = sae.loss_terms(x, sae(x), usage)
    mine = terms["mse"] + 0.1 * terms["l1"] + terms["aux"]
    theirs = written_out(sae.W_dec.detach(), sae.b_dec.detach())
    torch.testing.assert_close(mine, theirs)
    parameters = list(sae.parameters())
    for a, b in zip(torch.autograd.grad(mine, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [JumpReLU, Gated])
def test_it_starts_with_the_latents_asked_for(kind: type) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 16, generator=generator) + 5
    sae = kind(Widths.of(16), 200, start_l0=6.0)
    sae.reset_parameters(generator)
    sae.start_from({SITE: x}, "sqrt_d")
    firings = (sae(x).dense_latents() > 0).double()
    assert firings.sum(1).mean() == pytest.approx(6, rel=0.1)
    assert (firings.sum(0) > 0).all(), "none is dead"


@pytest.mark.parametrize("kind", [JumpReLU, Gated])
def test_a_dead_latent_comes_back(kind: type) -> None:
    sae, x, usage = started(kind(Widths.of(D), F, start_l0=3.0))
    with torch.no_grad():
        if kind is JumpReLU:
            sae.mechanism.log_threshold[:4] = math.log(50.0)
        else:
            sae.b_enc[:4] = -5.0
    assert not (sae(x).dense_latents()[:, :4] > 0).any()
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        sae.loss_terms(x, sae(x), usage)["pre_act"].backward()
        optimizer.step()
    assert (sae(x).dense_latents()[:, :4] > 0).any(0).all()


def test_a_revived_latent_gets_the_threshold_of_the_others() -> None:
    sae, _, _ = started(JumpReLU(Widths.of(D), F))
    with torch.no_grad():
        sae.mechanism.log_threshold[2] = 9.0
    sae.mechanism.revive(torch.tensor([2]))
    assert sae.mechanism.log_threshold[2] == sae.mechanism.log_threshold.detach().median()
