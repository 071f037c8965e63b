"""Crosscoder: several sites through one set of latents, each in its own units, and the norms that tell them apart."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae import Crosscoder, Mechanism, SiteRef, Widths, mechanisms
from lightsae.sae.initialise import geometric_median, measure_scale

T, F = 9, 13
SITES = {SiteRef("base", "resid_post.3"): 3, SiteRef("chat", "resid_post.3"): 4, SiteRef("base", "mlp_out.0"): 2}
BOTH = Widths(SITES, SITES)
D = 9
DEAD = (1, 4, 5, 8, 12)
Make = Callable[..., Any]
Weights = dict[str, Tensor]
KINDS: dict[str, Callable[[], Mechanism]] = {
    "ReLU": mechanisms.ReLU,
    "TopK": lambda: mechanisms.TopK(3, k_aux=2),
    "BatchTopK": lambda: mechanisms.BatchTopK(3, k_aux=2),
}
SCALES = torch.cat([torch.full((w,), s, dtype=torch.float64) for s, w in ((0.4, 3), (0.5, 4), (0.6, 2))])


def latents_of(x: Tensor, w: Weights, kind: str) -> Tensor:
    """sum_s W_enc^s a^s + b, a site at a time; with mechanisms that centre, of a^s - b_dec^s."""
    pre = w["b_enc"].clone()
    for start, stop in ((0, 3), (3, 7), (7, 9)):
        a = (SCALES * x)[:, start:stop]
        if kind != "ReLU":
            a = a - w["b_dec"][start:stop]
        pre = pre + a @ w["W_enc"][start:stop]
    if kind == "ReLU":
        return pre.clamp_min(0)
    edge: Any = pre.sort(dim=1, descending=True).values[:, 2:3]
    if kind == "BatchTopK":
        edge = pre.flatten().sort(descending=True).values[T * 3 - 1]
    return torch.where((pre >= edge) & (pre > 0), pre, 0)


def error_of(x: Tensor, w: Weights, kind: str) -> Tensor:
    return SCALES * x - latents_of(x, w, kind) @ w["W_dec"] - w["b_dec"]


@pytest.fixture
def x(normal: Make) -> Tensor:
    return normal(T, D, seed=1) * torch.tensor([1.0] * 3 + [8.0] * 4 + [0.5] * 2) + 3


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_the_sum_over_sites(arbitrary: Make, agree: Make, x: Tensor, kind: str) -> None:
    def reference(w: Weights) -> Tensor:
        parts = error_of(x, w, kind).split([3, 4, 2], 1)
        total = torch.stack([(part**2).sum(1).mean() for part in parts]).sum()
        if kind == "ReLU":
            return total
        spread = [((p - p.mean(0)) ** 2).sum(1).mean() for p in (SCALES * x).split([3, 4, 2], 1)]
        return total / torch.stack(spread).sum()

    agree(arbitrary(Crosscoder(BOTH, F, KINDS[kind]())), x, x, "mse", reference)


@pytest.mark.parametrize("p", [1.0, 0.6])
def test_l1_weighs_a_latent_by_the_sum_of_its_norms_at_the_sites(
    arbitrary: Make, agree: Make, x: Tensor, p: float
) -> None:
    sae = arbitrary(Crosscoder(BOTH, F, mechanisms.ReLU(p_end=p)))
    if p < 1:
        sae.mechanism.p.fill_(p)

    def reference(w: Weights) -> Tensor:
        norms = sum((rows**2).sum(1).sqrt() for rows in w["W_dec"].split([3, 4, 2], 1))
        strengths = latents_of(x, w, "ReLU") * norms
        return torch.where(strengths > 1e-4, strengths.clamp_min(1e-4) ** p, 0).sum(1).mean()

    agree(sae, x, x, "l1", reference)


@pytest.mark.parametrize("kind", ["TopK", "BatchTopK"])
def test_auxk_and_its_gradients_follow_the_formula(
    arbitrary: Make, agree: Make, weights_of: Make, with_dead: Make, x: Tensor, kind: str
) -> None:
    sae, dead = arbitrary(Crosscoder(BOTH, F, KINDS[kind]())), list(DEAD)
    error = error_of(x, weights_of(sae), kind)

    def reference(w: Weights) -> Tensor:
        pre = ((SCALES * x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])[:, dead]
        edge = pre.sort(dim=1, descending=True).values[:, 1:2]
        predicted = torch.where((pre >= edge) & (pre > 0), pre, 0) @ w["W_dec"][dead]
        return ((error - predicted) ** 2).sum() / (error**2).sum()

    agree(sae, x, x, "auxk", reference, with_dead(F, DEAD))


@pytest.mark.parametrize(("kind", "term"), [("ReLU", "mse"), ("ReLU", "l1"), ("BatchTopK", "mse")])
def test_gradcheck(arbitrary: Make, gradcheck: Make, x: Tensor, kind: str, term: str) -> None:
    assert gradcheck(arbitrary(Crosscoder(BOTH, F, KINDS[kind]())), x, x, term)


@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode_follow_the_formula(arbitrary: Make, weights_of: Make, x: Tensor, kind: str) -> None:
    sae = arbitrary(Crosscoder(BOTH, F, KINDS[kind]()))
    w = weights_of(sae)
    torch.testing.assert_close(sae.encode(x), latents_of(x, w, kind), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae(x).x_hat, x - error_of(x, w, kind) / SCALES, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sae.direction(5), w["W_dec"][5] / SCALES)


# -- norms -----------------------------------------------------------------------------------------------------------


def test_norms_at_each_site(arbitrary: Make, weights_of: Make) -> None:
    sae = arbitrary(Crosscoder(BOTH, F, mechanisms.ReLU()))
    W_dec = weights_of(sae)["W_dec"]
    expected = [[float(row[a:b].pow(2).sum() ** 0.5) for a, b in ((0, 3), (3, 7), (7, 9))] for row in W_dec]
    norms = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(sae.site_norms(), norms)
    torch.testing.assert_close(sae.decoder_norms(), norms.sum(1))
    torch.testing.assert_close(sae.relative_norms(), norms / norms.sum(1, keepdim=True))
    assert not sae.relative_norms().requires_grad


def test_relative_norms_tell_shared_from_single(arbitrary: Make) -> None:
    sae = arbitrary(Crosscoder(BOTH, F, mechanisms.ReLU()))
    with torch.no_grad():
        sae.W_dec[0] = 0
        sae.W_dec[1, 3:] = 0
        sae.W_dec[2] = torch.tensor([1.0, 0, 0, 0, -1, 0, 0, 0, 1])
    relative = sae.relative_norms()
    assert relative[0].tolist() == [0, 0, 0], "a row of zeros belongs nowhere"
    assert relative[1].tolist() == [1, 0, 0]
    torch.testing.assert_close(relative[2], torch.full((3,), 1 / 3, dtype=torch.float64))


def test_rows_of_norm_one_are_those_of_all_sites_together(arbitrary: Make) -> None:
    sae = arbitrary(Crosscoder(BOTH, F, mechanisms.BatchTopK(3)))
    sae.constrain()
    torch.testing.assert_close(sae.W_dec.norm(dim=1).detach(), torch.ones(F, dtype=torch.float64))
    assert (sae.decoder_norms() > 1.1).any()


# -- start -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_site_is_normalised_by_itself(normal: Make, kind: str) -> None:
    sample = {
        site: normal(500, width, seed=seed).float() * 10**seed + 2 for seed, (site, width) in enumerate(SITES.items())
    }
    sae = Crosscoder(BOTH, F, KINDS[kind]())
    sae.start_from(sample, "sqrt_d")
    expected = torch.stack([measure_scale(values, "sqrt_d") for values in sample.values()])
    torch.testing.assert_close(sae.input_scale, expected)
    assert torch.equal(sae.input_scale, sae.output_scale)
    scaled = [values * scale for values, scale in zip(sample.values(), expected, strict=True)]
    torch.testing.assert_close(sae.b_dec.detach(), geometric_median(torch.cat(scaled, 1)), rtol=1e-3, atol=1e-4)


# -- what cannot work ------------------------------------------------------------------------------------------------


def test_one_site_is_too_few() -> None:
    with pytest.raises(
        ConfigError, match=r"reads several sites, and this is one, m:resid_post\.1; write a list"
    ) as error:
        Crosscoder(Widths.autoencoder(SiteRef("m", "resid_post.1"), 4), F, mechanisms.ReLU())
    assert "\n" not in str(error.value)


def test_a_penalty_by_norms_needs_norms() -> None:
    with pytest.raises(ConfigError, match=r"mechanism\.decoder_norm is 'unit'; a Crosscoder"):
        Crosscoder(BOTH, F, mechanisms.ReLU("unit"))


def test_settings_of_the_mechanism_are_named_under_it() -> None:
    with pytest.raises(ConfigError, match=r"mechanism\.k is 14"):
        Crosscoder(BOTH, F, mechanisms.BatchTopK(14))
