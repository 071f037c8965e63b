"""Transcoder: reads one site and predicts another, of other width and scale, by any mechanism, with or without skip."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae import BatchTopK, Mechanism, Refinements, ReLU, SiteRef, TopK, Transcoder, Widths, mechanisms

T, D, OUT, F = 9, 6, 4, 13
DEAD = (1, 4, 5, 8, 12)
A, B = SiteRef("m", "mlp_in.0"), SiteRef("m", "mlp_out.0")
ACROSS = Widths({A: D}, {B: OUT})
READ, PREDICTED = 0.4, 1.3
Make = Callable[..., Any]
Weights = dict[str, Tensor]
KINDS: dict[str, Callable[[], Mechanism]] = {
    "ReLU": mechanisms.ReLU,
    "ReLU unit": lambda: mechanisms.ReLU("unit"),
    "TopK": lambda: mechanisms.TopK(3, k_aux=2),
    "BatchTopK": lambda: mechanisms.BatchTopK(3, k_aux=2),
}


def make(arbitrary: Make, normal: Make, kind: str, skip: bool, **settings: Any) -> Transcoder:
    sae: Transcoder = arbitrary(Transcoder(ACROSS, F, KINDS[kind](), skip=skip, **settings))
    sae.input_centre.copy_(normal(D, seed=40))
    with torch.no_grad():
        sae.input_scale.fill_(READ)
        sae.output_scale.fill_(PREDICTED)
    return sae


@pytest.fixture
def x(normal: Make) -> Tensor:
    return normal(T, D, seed=1) + 3


@pytest.fixture
def y(normal: Make) -> Tensor:
    return 5 * normal(T, OUT, seed=2) - 7


def latents_of(x: Tensor, w: Weights, centre: Tensor, kind: str) -> Tensor:
    """Every mechanism sees x - input_centre, those too that take no centre in an autoencoder."""
    pre = (READ * x - centre) @ w["W_enc"] + w["b_enc"]
    if kind == "TopK":
        edge: Any = pre.sort(dim=1, descending=True).values[:, 2:3]
    elif kind == "BatchTopK":
        edge = pre.flatten().sort(descending=True).values[T * 3 - 1]
    else:
        edge = 0.0
    return torch.where((pre >= edge) & (pre > 0), pre, 0)


def error_of(x: Tensor, y: Tensor, w: Weights, centre: Tensor, kind: str) -> Tensor:
    x_hat = latents_of(x, w, centre, kind) @ w["W_dec"] + w["b_dec"]
    if "W_skip" in w:
        x_hat = x_hat + (READ * x - centre) @ w["W_skip"]
    return PREDICTED * y - x_hat


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_and_its_gradients_follow_the_formula(
    arbitrary: Make, normal: Make, agree: Make, x: Tensor, y: Tensor, kind: str, skip: bool
) -> None:
    sae = make(arbitrary, normal, kind, skip)

    def reference(w: Weights) -> Tensor:
        squared = error_of(x, y, w, sae.input_centre, kind) ** 2
        if kind == "ReLU":
            return squared.sum(1).mean()
        return squared.mean() if kind == "ReLU unit" else squared.sum() / ((PREDICTED * (y - y.mean(0))) ** 2).sum()

    agree(sae, x, y, "mse", reference)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["ReLU", "ReLU unit"])
def test_l1_and_its_gradients_follow_the_formula(
    arbitrary: Make, normal: Make, agree: Make, x: Tensor, y: Tensor, kind: str, skip: bool
) -> None:
    sae = make(arbitrary, normal, kind, skip)

    def reference(w: Weights) -> Tensor:
        norms = (w["W_dec"] ** 2).sum(1).sqrt() if kind == "ReLU" else torch.ones(F, dtype=torch.float64)
        return (latents_of(x, w, sae.input_centre, kind) * norms).sum(1).mean()

    agree(sae, x, y, "l1", reference)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["TopK", "BatchTopK"])
def test_auxk_and_its_gradients_follow_the_formula(
    arbitrary: Make,
    normal: Make,
    agree: Make,
    weights_of: Make,
    with_dead: Make,
    x: Tensor,
    y: Tensor,
    kind: str,
    skip: bool,
) -> None:
    """The error that the dead learn from is what latents and skip leave; they see what the encoder sees."""
    sae, dead = make(arbitrary, normal, kind, skip), list(DEAD)
    error = error_of(x, y, weights_of(sae), sae.input_centre, kind)

    def reference(w: Weights) -> Tensor:
        pre = ((READ * x - sae.input_centre) @ w["W_enc"] + w["b_enc"])[:, dead]
        edge = pre.sort(dim=1, descending=True).values[:, 1:2]
        predicted = torch.where((pre >= edge) & (pre > 0), pre, 0) @ w["W_dec"][dead]
        return ((error - predicted) ** 2).sum() / (error**2).sum()

    agree(sae, x, y, "auxk", reference, with_dead(F, DEAD))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(arbitrary: Make, normal: Make, gradcheck: Make, x: Tensor, y: Tensor, kind: str) -> None:
    assert gradcheck(make(arbitrary, normal, kind, skip=True), x, y, "mse")


@pytest.mark.parametrize("skip", [False, True])
def test_multi_has_the_skip_too(arbitrary: Make, normal: Make, agree: Make, x: Tensor, y: Tensor, skip: bool) -> None:
    sae: Transcoder = arbitrary(Transcoder(ACROSS, F, mechanisms.TopK(3, multi_k=F), skip=skip))
    sae.input_centre.copy_(normal(D, seed=40))
    with torch.no_grad():
        sae.input_scale.fill_(READ)
        sae.output_scale.fill_(PREDICTED)

    def reference(w: Weights) -> Tensor:
        error = error_of(x, y, w, sae.input_centre, "ReLU")  # all that are positive
        return (error**2).sum() / ((PREDICTED * (y - y.mean(0))) ** 2).sum()

    agree(sae, x, y, "multi", reference)


def test_the_tilt_is_that_of_the_targets_error(
    arbitrary: Make, normal: Make, agree: Make, weights_of: Make, x: Tensor, y: Tensor
) -> None:
    sae = make(arbitrary, normal, "ReLU", False, refinements=Refinements(tilt=0.5))
    now = (error_of(x, y, weights_of(sae), sae.input_centre, "ReLU") ** 2).sum(1)
    weights = (0.5 * now / now.mean()).exp()

    def reference(w: Weights) -> Tensor:
        return ((weights / weights.sum()) * (error_of(x, y, w, sae.input_centre, "ReLU") ** 2).sum(1)).sum()

    agree(sae, x, y, "mse", reference)


# -- encode, decode, start -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_in_the_units_of_the_target(
    arbitrary: Make, normal: Make, weights_of: Make, x: Tensor, y: Tensor, kind: str, skip: bool
) -> None:
    sae, w = make(arbitrary, normal, kind, skip), None
    w = weights_of(sae)
    latents = latents_of(x, w, sae.input_centre, kind)
    torch.testing.assert_close(sae.encode(x), latents, rtol=1e-12, atol=1e-12)
    output = sae(x)
    torch.testing.assert_close(output.x_hat, y - error_of(x, y, w, sae.input_centre, kind) / PREDICTED)
    torch.testing.assert_close(output.x_normalised, READ * x)
    torch.testing.assert_close(sae.decode(latents), (latents @ w["W_dec"] + w["b_dec"]) / PREDICTED)
    torch.testing.assert_close(sae.direction(2), w["W_dec"][2] / PREDICTED)


def test_a_skip_starts_at_nothing_and_can_take_a_linear_map_over(normal: Make) -> None:
    torch.manual_seed(0)
    x, hidden = normal(600, D, seed=1).float(), normal(D, OUT, seed=2).float()
    y = x @ hidden + 1
    sae = Transcoder(ACROSS, F, mechanisms.TopK(1), skip=True)
    sae.start_from({A: x, B: y}, "none")
    assert sae.W_skip is not None
    assert (sae.W_skip == 0).all()
    with torch.no_grad():
        sae.W_skip.copy_(hidden)
        sae.b_dec.copy_(1 + sae.input_centre @ hidden)
    torch.testing.assert_close(sae.eval()(x).x_hat - sae.decode(sae.encode(x)) + sae.b_dec, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_each_side_has_its_scale_and_its_centre(normal: Make, kind: str) -> None:
    x, y = normal(600, D, seed=1).float() * 4 + 9, normal(600, OUT, seed=2).float() * 50 - 300
    sae = Transcoder(ACROSS, F, KINDS[kind]())
    sae.start_from({A: x, B: y}, "sqrt_d")
    assert (x * sae.input_scale).norm(dim=1).mean().item() == pytest.approx(D**0.5, rel=1e-4)
    assert (y * sae.output_scale).norm(dim=1).mean().item() == pytest.approx(OUT**0.5, rel=1e-4)
    torch.testing.assert_close(sae.input_centre / sae.input_scale, x.mean(0), rtol=0.1, atol=0.5)
    torch.testing.assert_close(sae.b_dec / sae.output_scale, y.mean(0), rtol=0.1, atol=5.0)
    assert not sae.input_centre.requires_grad, "a fixed vector"
    assert not list(sae.W_enc.shape) == list(sae.W_dec.shape)


def test_no_gradient_reaches_the_biases_through_the_centre(arbitrary: Make, normal: Make, x: Tensor) -> None:
    sae = make(arbitrary, normal, "ReLU unit", skip=False)
    sae.encode(x).sum().backward()
    assert sae.b_dec.grad is None or (sae.b_dec.grad == 0).all()


# -- what cannot work ------------------------------------------------------------------------------------------------


def test_one_that_predicts_what_it_reads_is_no_transcoder() -> None:
    with pytest.raises(ConfigError, match=r"predicts another site than it reads; write target_site") as error:
        Transcoder(Widths.of(D), F, mechanisms.TopK(2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [lambda w: ReLU(w, F), lambda w: TopK(w, F, k=2), lambda w: BatchTopK(w, F, k=2)])
def test_a_plain_variant_predicts_what_it_reads(make: Callable[[Widths], Any]) -> None:
    with pytest.raises(ConfigError, match="Transcoder"):
        make(ACROSS)


@pytest.mark.parametrize(
    ("refinements", "name"),
    [
        (Refinements(aligned=True), "aligned is True"),
        (Refinements(second_step=0.3), r"second_step is 0\.3"),
        (Refinements(prune=0.1), r"prune is 0\.1"),
    ],
)
def test_refinements_that_need_the_input_as_the_target(refinements: Refinements, name: str) -> None:
    message = rf"refinements\.{name}, but it needs an SAE that predicts what it reads"
    with pytest.raises(ConfigError, match=message):
        Transcoder(ACROSS, F, mechanisms.TopK(2), refinements=refinements)


def test_settings_of_the_mechanism_are_named_under_it() -> None:
    with pytest.raises(ConfigError, match=r"mechanism\.p_end is 2\.0"):
        Transcoder(ACROSS, F, mechanisms.ReLU(p_end=2.0))
