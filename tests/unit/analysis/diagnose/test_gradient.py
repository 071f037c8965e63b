"""What is left for the decoder's rows to learn: nothing where the error is least, whatever an L1 penalty shrinks."""

import pytest
import torch
from torch import Tensor

from lightsae.analysis.diagnose.gradient import DecoderGradient
from lightsae.sae import SiteRef, SparseAutoencoder, TopK, Widths
from lightsae.sae.sparse_ops import SparseLatents, as_sparse

D, F, T = 24, 12, 1024


def world() -> tuple[SparseAutoencoder, Tensor, Tensor, SparseLatents]:
    """An SAE of orthogonal rows with norms from 0.5 to 2; what it reads is what it can write, and noise beside."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(D, D, generator=draw))[0]
    sae = TopK(Widths.autoencoder(SiteRef("m", "s"), D), F, k=F).eval()
    with torch.no_grad():
        sae.W_dec.copy_(rows[:F] * torch.linspace(0.5, 2, F)[:, None])
    latents = torch.rand(T, F, generator=draw) * (torch.rand(T, F, generator=draw) < 0.3)
    x = latents @ sae.W_dec.detach() + 0.1 * torch.randn(T, D - F, generator=draw) @ rows[F:]
    return sae, x, latents, as_sparse(latents)


def left(factors: Tensor) -> float:
    """Return the share where each latent writes so many times as much as it should."""
    sae, x, dense, latents = world()
    gradient = DecoderGradient(sae)
    error = x - (dense * factors) @ sae.W_dec.detach()
    for part in (slice(0, 512), slice(512, T)):
        of_part = as_sparse(dense[part])
        gradient.add(x[part], of_part, error[part], torch.ones(512, dtype=torch.bool))
    assert latents.pattern.width == F
    return gradient.share_of(float((x - x.mean(0)).square().sum()))


def test_at_the_least_error_nothing_is_left() -> None:
    assert left(torch.ones(F)) == pytest.approx(0, abs=1e-6)


def test_rows_that_are_too_long_or_too_short_are_seen() -> None:
    assert left(1 + 0.3 * (-1.0) ** torch.arange(F)) > 0.02
    assert left(torch.full((F,), 1.3)) > 0.02


def test_an_l1_penalty_leaves_nothing() -> None:
    """With it, <e, d> / |d| summed over a latent's firings is in proportion to how strongly it writes."""
    sae, _, dense, latents = world()
    gradient = DecoderGradient(sae)
    shrunk = 0.05 * (dense > 0) @ torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    gradient.add(shrunk, latents, shrunk, torch.ones(T, dtype=torch.bool))
    assert gradient.share_of(float(shrunk.square().sum())) == pytest.approx(0, abs=1e-6)


def test_tokens_that_do_not_count_are_left_out() -> None:
    sae, x, dense, latents = world()
    gradient = DecoderGradient(sae)
    error = torch.where(torch.arange(T)[:, None] < 100, 9 * x, x - dense @ sae.W_dec.detach())
    gradient.add(x, latents, error, torch.arange(T) >= 100)
    assert gradient.share_of(float(x.square().sum())) == pytest.approx(0, abs=1e-6)
