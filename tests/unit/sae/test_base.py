"""Scales, the start, and units: what goes in and comes out is raw, what happens inside is normalised."""

import math

import pytest
import torch
from torch import Tensor

from lightsae.sae import JumpReLU, ReLU, SiteRef, SparseAutoencoder, TopK, Widths
from lightsae.sae.base import MEDIAN_TOKENS
from lightsae.sae.initialise import geometric_median, measure_scale

D = 16
SITE = SiteRef("", "activations")


def data(tokens: int = 400, mean: float = 3.0, seed: int = 0) -> Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(seed)) * 2 + mean


def started(x: Tensor, normalisation: str = "sqrt_d", kind: type[SparseAutoencoder] = TopK) -> SparseAutoencoder:
    sae = kind(Widths.of(D), d_sae=32, **({"k": 4} if kind is TopK else {}))
    sae.reset_parameters(torch.Generator().manual_seed(1))
    sae.start_from({SITE: x}, normalisation)
    return sae


# -- scales ----------------------------------------------------------------------------------------------------------


def test_the_three_normalisations() -> None:
    x = data()
    norms = x.double().square().sum(1).sqrt()
    assert (norms * measure_scale(x, "sqrt_d")).mean().item() == pytest.approx(D**0.5, rel=1e-6)
    assert (norms * measure_scale(x, "unit")).square().mean().item() == pytest.approx(1, rel=1e-6)
    assert measure_scale(x, "none") == 1


@pytest.mark.parametrize("normalisation", ["sqrt_d", "unit", "none"])
def test_scales_are_stored_in_float32_and_applied(normalisation: str) -> None:
    x = data()
    sae = started(x, normalisation)
    assert sae.input_scale.dtype == sae.output_scale.dtype == torch.float32
    assert torch.equal(sae.input_scale, measure_scale(x, normalisation).reshape(1))
    assert torch.equal(sae(x).x_normalised, x * sae.input_scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scale_of_half_precision_with_large_norms(dtype: torch.dtype) -> None:
    x = (data() * 1e4).clamp(-6e4, 6e4).to(dtype)
    expected = D**0.5 / x.double().norm(dim=1).mean()
    assert measure_scale(x, "sqrt_d").item() == pytest.approx(expected.item(), rel=1e-6)
    sae = started(x)
    assert sae.encode(x).isfinite().all()
    assert sae(x).x_hat.dtype == torch.float32


@pytest.mark.parametrize("kind", [ReLU, TopK])
@pytest.mark.parametrize("normalisation", ["sqrt_d", "unit"])
def test_the_unit_of_the_raw_data_does_not_matter(kind: type[SparseAutoencoder], normalisation: str) -> None:
    x = data()
    small, large = started(x, normalisation, kind), started(x * 1024, normalisation, kind)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(small, name), getattr(large, name)), name
    assert torch.equal(small.encode(x), large.encode(x * 1024))
    assert torch.equal(small(x).x_hat * 1024, large(x * 1024).x_hat)
    assert torch.equal(small.direction(3) * 1024, large.direction(3))


def test_sinks_are_the_callers_business_and_one_would_wreck_the_scale() -> None:
    x = data()
    with_sink = torch.cat([x, torch.full((1, D), 1e5)])
    assert measure_scale(with_sink, "sqrt_d") < 0.1 * measure_scale(x, "sqrt_d")


# -- start -----------------------------------------------------------------------------------------------------------


def test_geometric_median_of_known_data() -> None:
    # Symmetric about a point: the median is that point.
    arms = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    torch.testing.assert_close(geometric_median(arms + 7), torch.tensor([7.0, 7.0]), atol=1e-4, rtol=0)
    # On a line it is the ordinary median: an outlier does not move it as it moves the mean.
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0], [1e4]])
    torch.testing.assert_close(geometric_median(line), torch.tensor([2.0]), atol=1e-2, rtol=0)
    # An equilateral triangle's Fermat point is its centre; a corner of more than 120 degrees is its own.
    angles = torch.tensor([0.0, 2.0944, 4.18879])
    triangle = torch.stack([angles.cos(), angles.sin()], 1)
    torch.testing.assert_close(geometric_median(triangle), torch.zeros(2), atol=1e-4, rtol=0)


def test_geometric_median_is_the_least_sum_of_distances() -> None:
    x = data(300)
    median = geometric_median(x)

    def cost(point: Tensor) -> float:
        return (x.double() - point.double()).norm(dim=1).sum().item()

    generator = torch.Generator().manual_seed(5)
    for _ in range(50):
        assert cost(median) <= cost(median + 0.05 * torch.randn(D, generator=generator)) + 1e-6


def test_geometric_median_of_identical_rows() -> None:
    torch.testing.assert_close(geometric_median(torch.full((5, 3), 2.5)), torch.full((3,), 2.5))


@pytest.mark.parametrize(
    "bad", [torch.zeros(0, 3), torch.tensor([[1.0, float("nan")]]), torch.tensor([[float("inf")]])]
)
def test_geometric_median_of_nothing_or_of_nan(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="geometric_median"):
        geometric_median(bad)


@pytest.mark.parametrize("kind", [ReLU, TopK])
def test_b_dec_starts_at_the_median_in_normalised_units(kind: type[SparseAutoencoder]) -> None:
    x = data()
    sae = started(x, kind=kind)
    torch.testing.assert_close(sae.b_dec.detach(), geometric_median(x * sae.output_scale), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        sae.decode(torch.zeros(1, 32)).squeeze(0).detach(), geometric_median(x), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("kind", [ReLU, TopK])
def test_the_median_input_starts_with_pre_activations_of_zero(kind: type[SparseAutoencoder]) -> None:
    sae = started(data(), kind=kind)
    median = (sae.b_dec / sae.output_scale).detach()[None]
    assert sae.encode(median).abs().max() < 1e-5


def test_the_encoder_starts_as_the_decoder_transposed() -> None:
    for sae, norm in ((started(data()), 1.0), (started(data(), kind=ReLU), 0.1)):
        assert torch.equal(sae.W_enc, sae.W_dec.T)
        torch.testing.assert_close(sae.W_dec.norm(dim=1).detach(), torch.full((32,), norm))


def test_the_start_follows_from_the_generator() -> None:
    first, second = (TopK(Widths.of(D), d_sae=32, k=4) for _ in range(2))
    assert not torch.equal(first.W_dec, second.W_dec)
    for sae in (first, second):
        sae.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(first.W_dec, second.W_dec)


def test_a_median_of_some_thousands_is_taken_of_more() -> None:
    x = data(2 * MEDIAN_TOKENS + 1)
    x[1::2] = 1e3  # every other token: not among those that are read
    sae = started(x, "none")
    assert (sae.b_dec - 3).abs().max() < 0.2


# -- several sites ---------------------------------------------------------------------------------------------------


def test_each_site_has_its_own_scale() -> None:
    a, b = SiteRef("m", "resid_post.0"), SiteRef("m", "resid_post.1")
    sites = {a: 4, b: 6}
    sae = TopK(Widths(sites, dict(reversed(sites.items()))), d_sae=20, k=3)
    assert (sae.d_in, sae.d_out) == (10, 10)
    x_a, x_b = data()[:, :4], data(seed=1)[:, :6] * 50
    sae.start_from({a: x_a, b: x_b}, "sqrt_d")
    torch.testing.assert_close(
        sae.input_scale, torch.stack([measure_scale(x_a, "sqrt_d"), measure_scale(x_b, "sqrt_d")])
    )
    torch.testing.assert_close(sae.output_scale, sae.input_scale.flip(0))
    read = torch.cat([x_a, x_b], 1)
    output = sae(read)
    torch.testing.assert_close(output.x_normalised, torch.cat([x_a * sae.input_scale[0], x_b * sae.input_scale[1]], 1))
    scales = torch.cat([sae.output_scale[:1].expand(6), sae.output_scale[1:].expand(4)])
    torch.testing.assert_close(output.x_hat, output.x_hat_normalised / scales)
    torch.testing.assert_close(sae.direction(2), sae.W_dec[2] / scales)
    # The two that are read stand in another order among the predicted.
    torch.testing.assert_close(sae.b_dec[:6].detach(), geometric_median(torch.cat([x_b, x_a], 1) * scales)[:6])


# -- learning rates --------------------------------------------------------------------------------------------------


def test_default_learning_rates() -> None:
    """lr sqrt(D S) is 2.5: how far an encoder column of D weights goes in S steps of unrelated directions."""
    sae = TopK(Widths.of(64), 1024, k=2)
    assert sae.default_lr(3000) == pytest.approx(2.5 / math.sqrt(64 * 3000)) == pytest.approx(5.705e-3, rel=1e-3)
    assert TopK(Widths.of(64), 4096, k=2).default_lr(3000) == sae.default_lr(3000)
    assert TopK(Widths.of(256), 1024, k=2).default_lr(3000) == pytest.approx(sae.default_lr(3000) / 2)
    assert sae.default_lr(1) == 0.01, "the highest, for runs of a few steps"
    assert JumpReLU(Widths.of(64), 1024).default_lr(3000) == sae.default_lr(3000)
    assert sae.mechanism.adam_eps == 6.25e-10
