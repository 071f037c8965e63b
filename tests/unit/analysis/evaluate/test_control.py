"""The SAE that learned nothing: as wide, as many latents, and no gain would have served it better."""

import pytest
import torch

from lightsae.analysis.evaluate.control import random_sae
from lightsae.sae import SiteRef, Widths

SELF = Widths.autoencoder(SiteRef("m", "a"), 12)
ACROSS = Widths({SiteRef("m", "a"): 12}, {SiteRef("m", "b"): 7})


@pytest.fixture(params=[SELF, ACROSS], ids=["autoencoder", "transcoder"])
def widths(request: pytest.FixtureRequest) -> Widths:
    return request.param


def test_it_has_the_same_shape_and_as_many_latents(widths: Widths) -> None:
    read = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)) * 3 + 5
    predicted = read if widths is SELF else read[:, :7] * 2 - 1
    sae = random_sae(widths, 64, 4.4, read, predicted)
    assert (sae.d_sae, sae.d_in, sae.d_out) == (64, 12, widths.d_out)
    assert ((sae.encode(read) > 0).sum(1) == 4).all()
    with torch.no_grad():
        least = (predicted - sae(read).x_hat).square().sum()
        for gain in (0.9, 1.1):
            sae.W_dec.mul_(gain)
            assert (predicted - sae(read).x_hat).square().sum() > least
            sae.W_dec.div_(gain)


def test_the_seed_draws_it() -> None:
    read = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    one, same, other = (random_sae(SELF, 16, 2.0, read, read, seed).W_dec for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_at_least_one_latent_and_at_most_all() -> None:
    read = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    assert ((random_sae(SELF, 8, 0.0, read, read).encode(read) > 0).sum(1) <= 1).all()
    assert random_sae(SELF, 8, 500.0, read, read).d_sae == 8
