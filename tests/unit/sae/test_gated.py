"""Gated: its terms against formulas written in float64, and what each of them teaches."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae import Gated, LatentUsage, SiteRef, SparseAutoencoder, Transcoder, Widths, mechanisms

T, D, F = 9, 6, 13
Weights = dict[str, Tensor]


@pytest.fixture
def sae(arbitrary: Callable[[SparseAutoencoder], SparseAutoencoder]) -> SparseAutoencoder:
    return arbitrary(Gated(Widths.of(D), F))


def paths(w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gate's pre-activations and the latents."""
    along = (x - w["b_dec"]) @ w["W_enc"]
    gate = along + w["b_enc"]
    magnitude = along * w["mechanism.r_mag"].exp() + w["mechanism.b_mag"]
    return gate, torch.where((gate > 0) & (magnitude > 0), magnitude, 0)


def test_mse_follows_the_formula(sae: SparseAutoencoder, normal: Callable[..., Tensor], agree: Callable) -> None:
    x = normal(T, D, seed=1) + 1

    def term(w: Weights) -> Tensor:
        _, latents = paths(w, x * sae.input_scale)
        return (x * sae.input_scale - latents @ w["W_dec"] - w["b_dec"]).square().mean()

    agree(sae, x, x, "mse", term)


def test_l1_follows_the_formula(sae: SparseAutoencoder, normal: Callable[..., Tensor], agree: Callable) -> None:
    x = normal(T, D, seed=1) + 1

    def term(w: Weights) -> Tensor:
        gate, _ = paths(w, x * sae.input_scale)
        return (gate.clamp_min(0) * w["W_dec"].square().sum(1).sqrt()).sum(1).mean()

    agree(sae, x, x, "l1", term)


def test_aux_follows_the_formula_with_the_decoder_fixed(
    sae: SparseAutoencoder, normal: Callable[..., Tensor], agree: Callable
) -> None:
    x = normal(T, D, seed=1) + 1
    W_dec, b_dec = sae.W_dec.detach().clone(), sae.b_dec.detach().clone()

    def term(w: Weights) -> Tensor:
        gate, _ = paths(w, x * sae.input_scale)
        return (x * sae.input_scale - gate.clamp_min(0) @ W_dec - b_dec).square().mean()

    agree(sae, x, x, "aux", term)


def test_pre_act_follows_the_formula(
    sae: SparseAutoencoder, normal: Callable[..., Tensor], agree: Callable, with_dead: Callable
) -> None:
    x, dead = normal(T, D, seed=1) + 1, (1, 4, 12)

    def term(w: Weights) -> Tensor:
        gate, _ = paths(w, x * sae.input_scale)
        norms = w["W_dec"].square().sum(1).sqrt()
        return sum(((-gate[:, i]).clamp_min(0) * norms[i]).min() for i in dead)

    agree(sae, x, x, "pre_act", term, with_dead(F, dead))


@pytest.mark.parametrize("term", ["mse", "l1"])
def test_gradcheck(term: str, sae: SparseAutoencoder, normal: Callable[..., Tensor], gradcheck: Callable) -> None:
    x = normal(T, D, seed=1) + 1
    assert gradcheck(sae, x, x, term)


def test_the_aux_term_teaches_the_gate_and_nothing_else(normal: Callable[..., Tensor]) -> None:
    widths = Widths({SiteRef("", "mlp_in.0"): D}, {SiteRef("", "mlp_out.0"): D + 1})
    sae = Transcoder(widths, F, mechanisms.Gated(), skip=True).double()
    with torch.no_grad():
        for seed, parameter in enumerate(sae.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed))
    x, target = normal(T, D, seed=20), normal(T, D + 1, seed=21)
    sae.loss_terms(target, sae(x), LatentUsage(F, 10))["aux"].backward()
    taught = {name for name, parameter in sae.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert taught == {"W_enc", "b_enc"}


def test_a_gate_opens_without_a_say_in_the_magnitude(sae: SparseAutoencoder, normal: Callable[..., Tensor]) -> None:
    x = normal(200, D)
    before = sae.encode(x)
    with torch.no_grad():
        sae.b_enc.add_(0.3)
    after = sae.encode(x)
    both = (before > 0) & (after > 0)
    assert both.any()
    assert ((after > 0) & (before == 0)).any()
    torch.testing.assert_close(after[both], before[both])


def test_a_revived_latent_has_the_magnitude_of_its_gate(sae: SparseAutoencoder) -> None:
    sae.mechanism.revive(torch.tensor([3, 5]))
    for parameter in (sae.mechanism.r_mag, sae.mechanism.b_mag):
        assert (parameter[[3, 5]] == 0).all()
        assert (parameter[[i for i in range(F) if i not in (3, 5)]] != 0).all()


def test_a_start_without_latents_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"start_l0 is 0\.0"):
        Gated(Widths.of(D), F, start_l0=0.0)
