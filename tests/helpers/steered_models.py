"""Tiny random models of every architecture, and dictionaries whose latents fire on about half of their tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightsae.lm import LanguageModel
from lightsae.sae import (
    BatchTopK,
    Gated,
    JumpReLU,
    Matryoshka,
    Refinements,
    ReLU,
    SiteRef,
    SparseAutoencoder,
    TopK,
    Widths,
    mechanisms,
)

F = 40
KINDS: dict[str, Callable[[Widths], SparseAutoencoder]] = {
    "ReLU": lambda widths: ReLU(widths, F),
    "ReLU-unit": lambda widths: ReLU(widths, F, decoder_norm="unit"),
    "JumpReLU": lambda widths: JumpReLU(widths, F),
    "Gated": lambda widths: Gated(widths, F),
    "TopK": lambda widths: TopK(widths, F, k=16),
    "BatchTopK": lambda widths: BatchTopK(widths, F, k=16),
    "Matryoshka": lambda widths: Matryoshka(widths, F, mechanisms.TopK(16)),
    "ReLU-layer_norm": lambda widths: ReLU(widths, F, refinements=Refinements(token_norm="layer_norm")),
    "TopK-rescale": lambda widths: TopK(widths, F, k=16, refinements=Refinements(token_norm="rescale")),
}


def randomised(sae: SparseAutoencoder, seed: int = 3) -> SparseAutoencoder:
    """Fill every parameter, and the scales, with numbers of their own: a mix-up shows."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if "threshold" in name:
                parameter.copy_(noise.abs().mul(0.1).add(0.02).log())
            else:
                parameter.copy_(0.3 * noise)
        sae.input_scale.copy_(torch.linspace(0.4, 0.6, len(sae.input_scale)))
        sae.output_scale.copy_(torch.linspace(0.7, 0.5, len(sae.output_scale)))
        if isinstance(sae.mechanism, mechanisms.BatchTopK):
            sae.mechanism.threshold.fill_(0.05)
    return sae.eval()


@pytest.fixture
def make_sae() -> Callable[..., SparseAutoencoder]:
    def make(lm: LanguageModel, site: str = "resid_post.1", kind: str = "ReLU") -> SparseAutoencoder:
        sae = randomised(KINDS[kind](Widths.autoencoder(SiteRef(lm.name, site), lm.width(site))))
        x = lm.capture(torch.randint(3, 61, (8, 9), generator=torch.Generator().manual_seed(2)), [site])[site]
        with torch.no_grad():
            # Off the median by a little, so that no token is on the edge by a rounding error.
            sae.b_enc.sub_(sae.pre_activations(x[:, 1:].flatten(0, 1).float().clone()).median(0).values - 0.01)
            if isinstance(sae.mechanism, mechanisms.Gated):
                sae.mechanism.b_mag.copy_(0.5 + sae.b_enc * sae.mechanism.r_mag.exp())
        return sae

    return make


@pytest.fixture(scope="module")
def lm(tiny_folder: Any) -> LanguageModel:
    return LanguageModel.from_pretrained(str(tiny_folder("llama")))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
