"""Every loss term of every variant against its published formula, written densely in float64, with its gradients.

The references are differentiated by central differences, so that no autograd rule of the package, or of torch, is
taken on trust.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightsae.errors import ConfigError
from lightsae.sae import LatentUsage, ReLU, SparseAutoencoder, TopK, Widths
from lightsae.sae.mechanisms.topk import nearest_power_of_two

T, D, F = 9, 6, 13
DEAD = (1, 4, 5, 8, 12)
PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_dec")
Weights = dict[str, Tensor]
Reference = Callable[[Tensor, Weights], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(kind: type[SparseAutoencoder], **settings: object) -> SparseAutoencoder:
    """A dictionary in float64 whose weights are nothing special: untied, biased, rows of any norm."""
    sae = kind(Widths.of(D), d_sae=F, **settings).double()
    with torch.no_grad():
        for seed, name in enumerate(PARAMETERS, start=10):
            parameter = getattr(sae, name)
            parameter.copy_(0.7 * normal(*parameter.shape, seed=seed))
        sae.input_scale.fill_(0.4)
        sae.output_scale.fill_(0.4)
    return sae


def with_dead(latents: tuple[int, ...] = DEAD) -> LatentUsage:
    usage = LatentUsage(F, dead_after=10)
    usage.known_dead[list(latents)] = True
    return usage


def weights_of(sae: SparseAutoencoder) -> Weights:
    return {name: getattr(sae, name).detach().clone() for name in PARAMETERS}


def numeric_gradients(function: Callable[[Weights], Tensor], weights: Weights, step: float = 1e-6) -> Weights:
    gradients = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        for place in range(tensor.numel()):
            sides = []
            for sign in (1, -1):
                moved = {key: value.clone() for key, value in weights.items()}
                moved[name].view(-1)[place] += sign * step
                sides.append(function(moved))
            gradients[name].view(-1)[place] = (sides[0] - sides[1]) / (2 * step)
    return gradients


# -- the formulas, token by token ------------------------------------------------------------------------------------


def relu_latents(x: Tensor, w: Weights, unit: bool) -> Tensor:
    return ((x - w["b_dec"] if unit else x) @ w["W_enc"] + w["b_enc"]).clamp_min(0)


def relu_mse(unit: bool) -> Reference:
    def term(x: Tensor, w: Weights) -> Tensor:
        error = x - relu_latents(x, w, unit) @ w["W_dec"] - w["b_dec"]
        return (error**2).mean() if unit else (error**2).sum(1).mean()

    return term


def relu_l1(unit: bool) -> Reference:
    def term(x: Tensor, w: Weights) -> Tensor:
        latents = relu_latents(x, w, unit)
        norms = torch.ones(F, dtype=x.dtype) if unit else (w["W_dec"] ** 2).sum(1).sqrt()
        return torch.stack([sum(f * n for f, n in zip(token, norms, strict=True)) for token in latents]).mean()

    return term


def keep_largest(pre: Tensor, k: int) -> Tensor:
    threshold = pre.sort(dim=1, descending=True).values[:, k - 1 : k]
    return torch.where((pre >= threshold) & (pre > 0), pre, 0)


def topk_error(x: Tensor, w: Weights, k: int) -> Tensor:
    latents = keep_largest((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], k)
    return x - latents @ w["W_dec"] - w["b_dec"]


def topk_mse(k: int) -> Reference:
    return lambda x, w: (topk_error(x, w, k) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


def topk_auxk(k_aux: int, dead: tuple[int, ...], error: Tensor) -> Reference:
    """The target `error` is fixed: nothing of this term may reach the live latents."""

    def term(x: Tensor, w: Weights) -> Tensor:
        pre = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])[:, list(dead)]
        predicted = keep_largest(pre, min(k_aux, len(dead))) @ w["W_dec"][list(dead)]
        return ((error - predicted) ** 2).sum() / (error**2).sum()

    return term


def check(sae: SparseAutoencoder, x_raw: Tensor, term: str, usage: LatentUsage, reference: Reference) -> None:
    x = x_raw * 0.4
    value = sae.loss_terms(x_raw, sae(x_raw), usage)[term]
    torch.testing.assert_close(value.detach(), reference(x, weights_of(sae)), rtol=1e-10, atol=1e-12)
    sae.zero_grad()
    value.backward()
    expected = numeric_gradients(lambda w: reference(x, w), weights_of(sae))
    for name in PARAMETERS:
        grad = getattr(sae, name).grad
        grad = torch.zeros_like(expected[name]) if grad is None else grad
        torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{term}/{n}: {m}")


# -- against them ----------------------------------------------------------------------------------------------------

CASES: dict[str, tuple[Callable[[], SparseAutoencoder], str, Reference]] = {
    "ReLU free mse": (lambda: make(ReLU), "mse", relu_mse(False)),
    "ReLU free l1": (lambda: make(ReLU), "l1", relu_l1(False)),
    "ReLU unit mse": (lambda: make(ReLU, decoder_norm="unit"), "mse", relu_mse(True)),
    "ReLU unit l1": (lambda: make(ReLU, decoder_norm="unit"), "l1", relu_l1(True)),
    "TopK mse": (lambda: make(TopK, k=3), "mse", topk_mse(3)),
    "TopK mse, k 1": (lambda: make(TopK, k=1), "mse", topk_mse(1)),
    "TopK mse, k d_sae": (lambda: make(TopK, k=F), "mse", topk_mse(F)),
}


@pytest.mark.parametrize("case", CASES)
def test_term_and_gradients_follow_the_formula(case: str) -> None:
    build, term, reference = CASES[case]
    check(build(), normal(T, D, seed=1) + 3, term, with_dead(()), reference)


@pytest.mark.parametrize("k_aux", [1, 2, len(DEAD), 100])
def test_auxk_and_its_gradients_follow_the_formula(k_aux: int) -> None:
    sae, x = make(TopK, k=3, k_aux=k_aux), normal(T, D, seed=1) + 3
    error = topk_error(x * 0.4, weights_of(sae), 3)
    check(sae, x, "auxk", with_dead(), topk_auxk(k_aux, DEAD, error))


def test_auxk_trains_dead_encoders_and_decoders_and_no_others() -> None:
    sae, x = make(TopK, k=3, k_aux=2), normal(T, D, seed=1)
    sae.loss_terms(x, sae(x), with_dead())["auxk"].backward()
    live = [i for i in range(F) if i not in DEAD]
    for name, rows in (("W_enc", sae.W_enc.grad.T), ("W_dec", sae.W_dec.grad), ("b_enc", sae.b_enc.grad[:, None])):
        assert (rows[live] == 0).all(), name
        assert rows[list(DEAD)].abs().sum() > 0, name


def test_auxk_is_zero_while_nothing_is_dead() -> None:
    sae, x = make(TopK, k=3), normal(T, D, seed=1)
    terms = sae.loss_terms(x, sae(x), with_dead(()))
    assert terms["auxk"] == 0
    (terms["mse"] + terms["auxk"] / 32).backward()


def test_auxk_where_nothing_is_left_to_explain() -> None:
    sae = make(TopK, k=F, k_aux=2)
    x = sae.b_dec.detach().expand(T, D) / 0.4
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    terms = sae.loss_terms(x, sae(x), with_dead())
    assert terms["auxk"].isfinite()


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case: str) -> None:
    build, term, _ = CASES[case]
    sae, x, usage = build(), normal(T, D, seed=1) + 3, with_dead(())

    class Term(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sae = sae

        def forward(self, x: Tensor) -> Tensor:
            return self.sae.loss_terms(x, self.sae(x), usage)[term]

    def function(*values: Tensor) -> Tensor:
        named = {f"sae.{name}": value for name, value in zip(PARAMETERS, values, strict=True)}
        return torch.func.functional_call(module, named, (x,))

    module = Term()
    assert torch.autograd.gradcheck(function, tuple(getattr(sae, name) for name in PARAMETERS))


@pytest.mark.parametrize("build", [lambda: make(ReLU, decoder_norm="unit"), lambda: make(TopK, k=3)])
def test_gradient_of_b_dec_through_the_encoder_equals_the_naive_one(build: Callable[[], SparseAutoencoder]) -> None:
    sae, x, weights = build(), normal(T, D, seed=1), normal(T, F, seed=2)
    (sae.encode(x) * weights).sum().backward()
    w = {name: tensor.requires_grad_() for name, tensor in weights_of(sae).items()}
    pre = (x * 0.4 - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    latents = keep_largest(pre, 3) if isinstance(sae, TopK) else pre.clamp_min(0)
    (latents * weights).sum().backward()
    for name in ("W_enc", "b_enc", "b_dec"):
        torch.testing.assert_close(getattr(sae, name).grad, w[name].grad, rtol=1e-11, atol=1e-12)


# -- precision -------------------------------------------------------------------------------------------------------


def large(kind: type[SparseAutoencoder], **settings: object) -> tuple[SparseAutoencoder, Tensor, Tensor]:
    """Width 512 at mean 25 and standard deviation 1, centred by b_dec; the pre-activations in float64 beside it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 512, generator=generator) + 25
    sae = kind(Widths.of(512), d_sae=256, **settings)
    sae.reset_parameters(generator)
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
    pre = (x.double() - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    return sae, x, pre.detach()


@pytest.mark.parametrize(("kind", "settings"), [(ReLU, {"decoder_norm": "unit"}), (TopK, {"k": 256})])
def test_bf16_encoding_keeps_its_digits_at_a_large_mean(kind: type[SparseAutoencoder], settings: dict) -> None:
    sae, x, pre = large(kind, **settings)
    expected = pre.clamp_min(0)
    with torch.autocast("cpu", torch.bfloat16):
        latents = sae.encode(x).double()
    assert (latents - expected).norm() / expected.norm() < 0.005
    shortcut = (x.bfloat16() @ sae.W_enc.bfloat16() - (sae.b_dec @ sae.W_enc).bfloat16()).double().clamp_min(0)
    assert (shortcut - expected).norm() / expected.norm() > 0.02, "the data does not test what it should"


@pytest.mark.parametrize(
    ("kind", "settings"), [(ReLU, {}), (ReLU, {"decoder_norm": "unit"}), (TopK, {"k": 32, "k_aux": 8})]
)
def test_bf16_autocast_stays_near_fp32(kind: type[SparseAutoencoder], settings: dict) -> None:
    sae, x, _ = large(kind, **settings)
    sae.start_from({next(iter(sae.widths.read)): x}, "sqrt_d")
    usage = LatentUsage(256, 10)
    usage.known_dead[:20] = True

    def run() -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        sae.zero_grad()
        output = sae(x)
        terms = sae.loss_terms(x, output, usage)
        sum(terms.values()).backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in sae.parameters())
        return output.x_hat.float(), terms, {n: p.grad.clone() for n, p in sae.named_parameters()}

    exact = run()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run()
    assert (exact[0] - rounded[0]).norm() / exact[0].norm() < 0.01
    for term, value in exact[1].items():
        assert rounded[1][term].item() == pytest.approx(value.item(), rel=0.05), term
    for name, grad in exact[2].items():
        # A latent at the edge of the k largest may change sides: gradients are compared as a whole.
        assert (grad - rounded[2][name]).norm() / grad.norm() < 0.2, name


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"), [(384.0, 256), (385.0, 512), (2.0, 2), (0.5, 1), (3.5, 4), (2304.0, 2048)]
)
def test_nearest_power_of_two(value: float, expected: int) -> None:
    assert nearest_power_of_two(value) == expected


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TopK(Widths.of(4), d_sae=8, k=9), "k is 9"),
        (lambda: TopK(Widths.of(4), d_sae=8, k=0), "k is 0"),
        (lambda: TopK(Widths.of(4), d_sae=8, k=2, k_aux=0), "k_aux is 0"),
        (lambda: ReLU(Widths.of(4), d_sae=0), "d_sae is 0"),
    ],
)
def test_settings_that_cannot_work(build: Callable[[], SparseAutoencoder], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
