"""Refinements together: every pair, in every mechanism and structure that takes them, against one dense reference.

Axes: T tokens, D width, F latents.
"""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae import (
    BatchTopK,
    Crosscoder,
    Gated,
    JumpReLU,
    LatentUsage,
    Matryoshka,
    Refinements,
    ReLU,
    SiteRef,
    SparseAutoencoder,
    TopK,
    Transcoder,
    Widths,
    mechanisms,
)

T, D, F, K = 9, 6, 13, 4
STEP, TILT, PRUNE = 0.3, 0.8, 0.3
GROUPS = [3, 10]
FIRST, SECOND = 0.5, 0.9
TWO = Widths.autoencoder(SiteRef("m", "a"), 2), Widths.autoencoder(SiteRef("m", "b"), 4)
SITES = Widths({**TWO[0].read, **TWO[1].read}, {**TWO[0].read, **TWO[1].read})
BUILD: dict[str, Callable[[Refinements], SparseAutoencoder]] = {
    "ReLU": lambda r: ReLU(Widths.of(D), F, refinements=r),
    "ReLU unit": lambda r: ReLU(Widths.of(D), F, "unit", refinements=r),
    "TopK": lambda r: TopK(Widths.of(D), F, k=K, refinements=r),
    "BatchTopK": lambda r: BatchTopK(Widths.of(D), F, k=K, refinements=r),
    "JumpReLU": lambda r: JumpReLU(Widths.of(D), F, refinements=r),
    "Gated": lambda r: Gated(Widths.of(D), F, refinements=r),
    "Matryoshka TopK": lambda r: Matryoshka(Widths.of(D), F, mechanisms.TopK(K), GROUPS, refinements=r),
    "Matryoshka BatchTopK": lambda r: Matryoshka(Widths.of(D), F, mechanisms.BatchTopK(K), GROUPS, refinements=r),
    "Crosscoder ReLU": lambda r: Crosscoder(SITES, F, mechanisms.ReLU(), refinements=r),
    "Crosscoder BatchTopK": lambda r: Crosscoder(SITES, F, mechanisms.BatchTopK(K), refinements=r),
}
OPTIONS: dict[str, Any] = {"aligned": True, "second_step": STEP, "tilt": TILT, "prune": PRUNE}
SETS = [*combinations(OPTIONS, 2), tuple(OPTIONS)]
Make = Callable[..., Any]
Weights = dict[str, Tensor]


def encode(x: Tensor, w: Weights, kind: str, threshold: float | None) -> Tensor:
    """Latents of normalised activations; `threshold` is BatchTopK's at inference, None in training."""
    pre = (x if kind in ("ReLU", "Crosscoder ReLU") else x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    if kind == "Gated":
        magnitude = (pre - w["b_enc"]) * w["mechanism.r_mag"].exp() + w["mechanism.b_mag"]
        return torch.where((pre > 0) & (magnitude > 0), magnitude, 0)
    edge: Any = 0.0
    if kind == "JumpReLU":
        edge = w["mechanism.log_threshold"].exp()
    elif "BatchTopK" in kind:
        edge = pre.flatten().sort(descending=True).values[T * K - 1] if threshold is None else threshold
    elif "TopK" in kind:
        edge = pre.sort(dim=1, descending=True).values[:, K - 1 : K]
    return torch.where((pre >= edge) & (pre > 0), pre, 0)


def latents(x: Tensor, w: Weights, kind: str, r: Refinements, training: bool) -> Tensor:
    """All refinements, written out."""
    seen = x
    if r.second_step:
        first = encode(x, w, kind, None if training else FIRST)
        seen = x + r.second_step * (x - first @ w["W_dec"] - w["b_dec"])
    dense = encode(seen, w, kind, None if training else SECOND)
    kept = dense.clone()
    for t, i in dense.nonzero().tolist() if r.prune is not None and not training else []:
        others = dense[t].clone()
        others[i] = 0
        if (x[t] - others @ w["W_dec"] - w["b_dec"]) @ w["W_dec"][i] < r.prune:
            kept[t, i] = 0
    return kept


def errors(x: Tensor, w: Weights, kind: str, r: Refinements) -> Tensor:
    dense = latents(x, w, kind, r, training=True)
    sizes = [3, F] if kind.startswith("Matryoshka") else [F]
    per_prefix = [((x - dense[:, :n] @ w["W_dec"][:n] - w["b_dec"]) ** 2).sum(1) for n in sizes]
    return sum(per_prefix, torch.zeros(T, dtype=x.dtype)) / len(sizes)


def mse(x: Tensor, w: Weights, kind: str, r: Refinements, shares: Tensor) -> Tensor:
    unit = ((x - x.mean(0)) ** 2).sum(1).mean() if "TopK" in kind else D
    return (shares * errors(x, w, kind, r)).sum() / (1 if kind in ("ReLU", "Crosscoder ReLU") else unit)


def shares_of(x: Tensor, w: Weights, kind: str, r: Refinements) -> Tensor:
    now = errors(x, w, kind, r)
    weights = (r.tilt * now / now.mean()).exp()
    return weights / weights.sum()


@pytest.fixture
def x(normal: Make) -> Tensor:
    return normal(T, D, seed=1) + 3


@pytest.fixture(params=SETS, ids="+".join)
def refinements(request: pytest.FixtureRequest) -> Refinements:
    return Refinements(**{name: OPTIONS[name] for name in request.param})


@pytest.fixture
def sae(arbitrary: Make, kind: str, refinements: Refinements) -> SparseAutoencoder:
    made: SparseAutoencoder = arbitrary(BUILD[kind](refinements))
    made.constrain()
    for name, value in (("threshold", SECOND), ("first_threshold", FIRST)):
        if hasattr(made.mechanism, name):
            getattr(made.mechanism, name).fill_(value)
    return made


def scaled(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    scales = zip(sae.input_scale, sae.widths.read.values(), strict=True)
    return x * torch.cat([scale.expand(width) for scale, width in scales])


@pytest.mark.parametrize("kind", BUILD)
def test_latents_in_training_and_at_inference(
    sae: SparseAutoencoder, weights_of: Make, x: Tensor, kind: str, refinements: Refinements
) -> None:
    w, normalised = weights_of(sae), scaled(sae, x)
    training = latents(normalised, w, kind, refinements, training=True)
    torch.testing.assert_close(sae.encode(x), training, rtol=1e-10, atol=1e-12)
    sae.eval()
    inference = latents(normalised, w, kind, refinements, training=False)
    torch.testing.assert_close(sae.encode(x), inference, rtol=1e-10, atol=1e-12)
    x_hat = inference @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(scaled(sae, sae(x).x_hat), x_hat, rtol=1e-10, atol=1e-12)
    if refinements.prune is not None:
        unpruned = latents(normalised, w, kind, Refinements(second_step=refinements.second_step), training=False)
        assert 0 < inference.count_nonzero() < unpruned.count_nonzero(), "some are dropped, some stay"


@pytest.mark.parametrize("kind", BUILD)
def test_the_error_and_its_gradients(
    sae: SparseAutoencoder, agree: Make, weights_of: Make, x: Tensor, kind: str, refinements: Refinements
) -> None:
    normalised = scaled(sae, x)
    # Held fixed, as the tilt says; a threshold learns by a rule of its own and has no slope here.
    shares = shares_of(normalised, weights_of(sae), kind, refinements)
    if kind == "JumpReLU":
        value = sae.loss_terms(x, sae(x), LatentUsage(F, 10))["mse"].detach()
        torch.testing.assert_close(value, mse(normalised, weights_of(sae), kind, refinements, shares))
    else:
        agree(sae, x, x, "mse", lambda w: mse(normalised, w, kind, refinements, shares))


@pytest.mark.parametrize("kind", BUILD)
def test_aligned_holds_beside_each(sae: SparseAutoencoder, refinements: Refinements) -> None:
    products = (sae.W_enc.T * sae.W_dec).sum(1).detach()
    assert torch.allclose(products, torch.ones(F, dtype=products.dtype), rtol=0, atol=1e-12) == refinements.aligned


@pytest.mark.parametrize("name", ["aligned", "second_step", "prune"])
def test_a_transcoder_takes_the_tilt_alone(name: str) -> None:
    across = Widths({SiteRef("m", "a"): D}, {SiteRef("m", "b"): D})
    Transcoder(across, F, mechanisms.TopK(K), refinements=Refinements(tilt=TILT))
    with pytest.raises(ConfigError, match=f"{name} is .*, but it needs an SAE that predicts what it reads"):
        Transcoder(across, F, mechanisms.TopK(K), refinements=Refinements(tilt=TILT, **{name: OPTIONS[name]}))
