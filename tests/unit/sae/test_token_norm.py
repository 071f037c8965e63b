"""Tokens normalised by themselves: the formulas of the two sources, what is refused, and tokens without a length."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightsae.analysis.steering.steer import mean_norm_of
from lightsae.errors import ConfigError, FormatError
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.saved_sae import Provenance
from lightsae.sae import (
    MECHANISMS,
    Crosscoder,
    Gated,
    JumpReLU,
    LatentUsage,
    Refinements,
    ReLU,
    SiteRef,
    SparseAutoencoder,
    TopK,
    Transcoder,
    Widths,
)
from lightsae.sae.latent_reader import LatentReader
from lightsae.sae.token_norm import TokenFrame, TokenNorm

T, D, F = 50, 6, 13
Make = Callable[..., Any]
KINDS: list[TokenNorm] = ["layer_norm", "rescale"]


def forward_of_the_source(sae: SparseAutoencoder, x: Tensor, kind: TokenNorm) -> tuple[Tensor, Tensor]:
    """z = (u - b_dec) W_enc + b_enc, f = ReLU(topk(z)), x_hat = (f W_dec + b_dec) brought back: latents, prediction."""
    if kind == "layer_norm":
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True, unbiased=True)
        u = (x - mean) / (std + 1e-5)
    else:
        coefficient = D**0.5 / x.norm(dim=-1, keepdim=True)
        u = x * coefficient
    z = (u - sae.b_dec) @ sae.W_enc + sae.b_enc
    kept = z.topk(4, dim=-1)
    f = torch.zeros_like(z).scatter(-1, kept.indices, kept.values.relu())
    u_hat = f @ sae.W_dec + sae.b_dec
    return f, u_hat * std + mean if kind == "layer_norm" else u_hat / coefficient


@pytest.fixture
def x(normal: Make) -> Tensor:
    """Tokens of very different lengths, far from zero."""
    lengths = torch.logspace(-2, 3, T, dtype=torch.float64)[:, None]
    return lengths * (normal(T, D, seed=1) + 2)


@pytest.fixture
def make(arbitrary: Make) -> Callable[[TokenNorm], SparseAutoencoder]:
    def build(kind: TokenNorm) -> SparseAutoencoder:
        sae = arbitrary(TopK(Widths.of(D), F, k=4, refinements=Refinements(token_norm=kind)))
        sae.input_scale.fill_(1)
        sae.output_scale.fill_(1)
        return sae

    return build


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_sources_compute(make: Make, x: Tensor, kind: TokenNorm) -> None:
    sae = make(kind)
    latents, x_hat = forward_of_the_source(sae, x, kind)
    torch.testing.assert_close(sae.encode(x), latents, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae(x).x_hat, x_hat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.decode(latents, x), x_hat, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_weigh_all_tokens_alike_whatever_their_lengths(make: Make, x: Tensor, kind: TokenNorm) -> None:
    sae = make(kind)
    terms = sae.loss_terms(x, sae(x), LatentUsage(F, 10))
    u, x_hat = x / x.norm(dim=1, keepdim=True) * D**0.5, forward_of_the_source(sae, x, kind)[1]
    error = x - x_hat
    if kind == "layer_norm":
        u = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
        error = error / x.std(1, keepdim=True)
    else:
        error = error / x.norm(dim=1, keepdim=True) * D**0.5
    expected = error.square().sum(1).mean() / (u - u.mean(0)).square().sum(1).mean()
    # But for the epsilon, which is not added again in the way back.
    torch.testing.assert_close(terms["mse"], expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_without_a_length_is_predicted_as_it_came_and_has_finite_gradients(make: Make, kind: TokenNorm) -> None:
    sae = make(kind).float()
    x = torch.zeros(3, D)
    x[1] = 7 if kind == "layer_norm" else 0
    x[2] = torch.arange(D)
    x.requires_grad_()
    output = sae(x)
    assert torch.equal(output.x_hat[:2], x[:2])
    assert torch.equal(output.dense_latents()[0], output.dense_latents()[1])
    output.x_hat.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(make: Make, kind: TokenNorm, dtype: torch.dtype) -> None:
    """A mean a hundred times the spread would cancel in half precision."""
    sae = make(kind).float()
    x = (torch.randn(T, D, generator=torch.Generator().manual_seed(0)) + 100).to(dtype)
    assert torch.equal(sae(x).x_hat, sae(x.float()).x_hat)
    assert TokenFrame.of(x, kind).unit.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalisation", ["sqrt_d", "unit", "none"])
def test_scales_and_the_median_are_those_of_normalised_tokens(
    kind: TokenNorm, normalisation: str, normal: Make, x: Tensor
) -> None:
    sae = TopK(Widths.of(D), F, k=4, refinements=Refinements(token_norm=kind))
    sae.start_from({next(iter(sae.widths.read)): x.float()}, normalisation)
    norms = sae(x.float()).detach().x_normalised.norm(dim=1)
    if normalisation == "unit":
        assert float(norms.square().mean()) == pytest.approx(1, rel=1e-4)
    elif normalisation == "sqrt_d":
        assert float(norms.mean()) == pytest.approx(D**0.5, rel=1e-4)
    else:
        assert torch.equal(sae.input_scale, torch.ones(1))
    assert torch.equal(sae.input_scale, sae.output_scale)
    # The median of tokens of one length lies nearer to zero than each of them; raw ones of length 1,000 are not seen.
    assert 0 < float(sae.b_dec.detach().norm()) < float(norms.max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", [ReLU, JumpReLU, Gated])
def test_latents_read_one_by_one_are_the_encoders(
    arbitrary: Make, x: Tensor, kind: TokenNorm, variant: type[SparseAutoencoder]
) -> None:
    sae = arbitrary(variant(Widths.of(D), F, refinements=Refinements(token_norm=kind))).eval()  # type: ignore[call-arg]
    expected = sae.encode(x).detach()
    first, *_, last = (expected > 0).any(0).nonzero().flatten().tolist()
    reader = LatentReader(sae, [first, last], "cpu")
    assert reader.alone
    torch.testing.assert_close(reader(x), expected[:, [first, last]], rtol=1e-9, atol=1e-9)


# -- between files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ReLU", "TopK", "JumpReLU", "Gated"])
def test_in_portable_terms_and_back(arbitrary: Make, x: Tensor, kind: TokenNorm, name: str) -> None:
    sites = Widths.autoencoder(SiteRef("m", "resid_post.1"), D)
    mechanism = MECHANISMS[name](**({"k": 4} if name == "TopK" else {}))
    refinements = Refinements(token_norm=kind, centre_input=True)
    sae = arbitrary(SparseAutoencoder(sites, F, mechanism, refinements)).float().eval()
    sae.output_scale.copy_(sae.input_scale)
    x = x.float()
    portable = PortableSAE.of(sae, Source(model="m", site="resid_post.1"))
    assert portable.token_norm == kind
    again = portable.to_sae()
    assert again.refinements.token_norm == kind
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again(x).x_hat, sae(x).x_hat, rtol=1e-4, atol=1e-3)


def test_a_portable_transcoder_has_none() -> None:
    source = Source(model="m", site="mlp_in.1", target_site="mlp_out.1")
    zeros = {"W_enc": torch.zeros(D, F), "b_enc": torch.zeros(F), "W_dec": torch.zeros(F, 4), "b_dec": torch.zeros(4)}
    with pytest.raises(FormatError, match="token_norm is layer_norm, but it needs an SAE that predicts what it reads"):
        PortableSAE("relu", **zeros, token_norm="layer_norm", source=source).to_sae()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda r: ReLU(Widths.of(1), F, refinements=r), "one number has no standard deviation"),
        (lambda r: Crosscoder(TWO, F, MECHANISMS["TopK"](k=3), r), "it takes an SAE of one site"),
        (lambda r: Transcoder(ACROSS, F, MECHANISMS["TopK"](k=3), refinements=r), "an SAE that predicts what it reads"),
    ],
)
def test_where_it_has_no_meaning_it_is_refused(build: Make, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as told:
        build(Refinements(token_norm="layer_norm"))
    assert "token_norm is" in str(told.value)


A, B = SiteRef("m", "mlp_in.1"), SiteRef("m", "mlp_out.1")
TWO, ACROSS = Widths({A: D, B: D}, {A: D, B: D}), Widths({A: D}, {B: D})


def test_another_name_is_refused() -> None:
    refinements = Refinements()
    object.__setattr__(refinements, "token_norm", "batch_norm")  # past the tests' checks of types
    with pytest.raises(ConfigError, match=r"token_norm is 'batch_norm'.*layer_norm, rescale, or null"):
        TopK(Widths.of(D), F, k=4, refinements=refinements)


def test_a_mean_norm_does_not_follow_from_the_scale(make: Make) -> None:
    provenance = Provenance({"normalisation": "sqrt_d"})
    plain = copy.deepcopy(make("rescale"))
    plain.refinements = Refinements()
    (site,) = plain.widths.predicted
    assert mean_norm_of(None, plain, site, provenance) == pytest.approx(D**0.5)
    assert mean_norm_of(None, make("rescale"), site, provenance) is None
