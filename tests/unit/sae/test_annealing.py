"""The p-annealed penalty: its formula, its ten steps, and that no step makes it jump.

arXiv:2408.00113: sum f^p, p falls from 1 in ten steps, the coefficient rescaled so that the penalty is continuous.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae import LatentUsage, ReLU, SparseAutoencoder, Widths
from lightsae.sae.mechanisms.relu import SMALLEST

T, D, F = 9, 6, 13
Make = Callable[..., Any]
NORMS = ["free", "unit"]


@pytest.fixture
def x(normal: Make) -> Tensor:
    return normal(T, D, seed=1) + 3


def penalty(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    return sae.loss_terms(x, sae(x), LatentUsage(F, 10))["l1"]


def strengths(x: Tensor, w: dict[str, Tensor], decoder_norm: str) -> Tensor:
    if decoder_norm == "unit":
        return ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).clamp_min(0)
    return (x @ w["W_enc"] + w["b_enc"]).clamp_min(0) * (w["W_dec"] ** 2).sum(1).sqrt()


@pytest.mark.parametrize("decoder_norm", NORMS)
@pytest.mark.parametrize("p", [1.0, 0.84, 0.2])
def test_the_penalty_and_its_gradients_follow_the_formula(
    arbitrary: Make, agree: Make, x: Tensor, decoder_norm: str, p: float
) -> None:
    sae = arbitrary(ReLU(Widths.of(D), F, decoder_norm, p_end=0.2))
    sae.mechanism.p.fill_(p)
    sae.mechanism.rescale.fill_(1.7)

    def reference(w: dict[str, Tensor]) -> Tensor:
        powers = [sum(s**p for s in token if s > SMALLEST) for token in strengths(0.4 * x, w, decoder_norm)]
        return 1.7 * torch.stack([torch.as_tensor(power, dtype=x.dtype) for power in powers]).mean()

    agree(sae, x, x, "l1", reference)


@pytest.mark.parametrize("decoder_norm", NORMS)
def test_gradcheck(arbitrary: Make, gradcheck: Make, x: Tensor, decoder_norm: str) -> None:
    sae = arbitrary(ReLU(Widths.of(D), F, decoder_norm, p_end=0.2))
    sae.mechanism.p.fill_(0.4)
    assert gradcheck(sae, x, x, "l1")


@pytest.mark.parametrize("decoder_norm", NORMS)
def test_latents_near_zero_cost_nothing_and_pull_nothing(arbitrary: Make, x: Tensor, decoder_norm: str) -> None:
    """f^p has an infinite slope at 0."""
    sae = arbitrary(ReLU(Widths.of(D), F, decoder_norm, p_end=0.2))
    sae.mechanism.p.fill_(0.2)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        sae.b_enc.copy_(torch.logspace(-30, -4.1, F))
    value = penalty(sae, x)
    value.backward()
    assert value == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in sae.parameters())


@pytest.mark.parametrize("decoder_norm", NORMS)
def test_at_the_start_it_is_the_plain_penalty(arbitrary: Make, x: Tensor, decoder_norm: str) -> None:
    plain, annealed = (arbitrary(ReLU(Widths.of(D), F, decoder_norm, p_end=p_end)) for p_end in (1.0, 0.2))
    torch.testing.assert_close(penalty(annealed, x), penalty(plain, x))
    assert not list(plain.mechanism.buffers()), "one that is not annealed has nothing to store"


# -- the schedule ----------------------------------------------------------------------------------------------------


def test_p_falls_in_ten_equal_steps_to_its_end() -> None:
    mechanism = ReLU(Widths.of(D), F, p_end=0.2, p_begin=0.2).mechanism
    powers = []
    for step in range(10_000):
        mechanism.progress = step / 10_000
        powers.append(mechanism.present_p)
    assert set(powers[:2000]) == {1.0}
    levels = sorted(set(powers), reverse=True)
    assert levels == pytest.approx([1 - 0.08 * i for i in range(11)])
    assert powers == sorted(powers, reverse=True)
    assert [powers.count(level) for level in levels[1:]] == pytest.approx([800] * 10, abs=1)
    assert powers[2000] == pytest.approx(0.92), "the first step is where the fall begins"


def step(sae: SparseAutoencoder, *batches: Tensor) -> None:
    for x in batches:
        output = sae(x)
        sae.loss_terms(x, output, LatentUsage(F, 10))
        sae.observe(output)
    sae.commit()


@pytest.mark.parametrize("decoder_norm", NORMS)
def test_the_penalty_is_continuous_at_every_step_of_p(arbitrary: Make, x: Tensor, decoder_norm: str) -> None:
    sae = arbitrary(ReLU(Widths.of(D), F, decoder_norm, p_end=0.2, p_begin=0.1))
    sae.constrain()
    powers = set()
    before = penalty(sae.eval(), x).item()
    for progress in range(100):
        sae.progress = progress / 100
        step(sae.train(), x)
        assert penalty(sae.eval(), x).item() == pytest.approx(before, rel=1e-5)
        powers.add(round(float(sae.mechanism.p), 4))
    assert len(powers) == 11
    assert float(sae.mechanism.p) == pytest.approx(0.2)
    assert float(sae.mechanism.rescale) != pytest.approx(1, rel=0.1), "there was something to rescale"


@pytest.mark.parametrize("p_end", [0.2, 0.5])
def test_between_the_steps_nothing_moves(normal: Make, p_end: float) -> None:
    torch.manual_seed(0)
    sae = ReLU(Widths.of(D), F, p_end=p_end, p_begin=0.0)
    for progress in (0.0, 0.35, 0.95):
        sae.progress = progress
        step(sae, normal(T, D).float() + 3)
        rescale = float(sae.mechanism.rescale)
        for seed in range(20):
            step(sae, normal(T, D, seed=seed).float() + 3)
            assert float(sae.mechanism.rescale) == rescale, progress


def test_batches_of_a_step_count_together(arbitrary: Make, normal: Make) -> None:
    first, second = normal(T, D, seed=1) + 3, 2 * normal(T, D, seed=2)
    split, whole = (arbitrary(ReLU(Widths.of(D), F, p_end=0.2, p_begin=0.0)) for _ in range(2))
    for sae in (split, whole):
        sae.progress = 0.5
    step(split, first, second)
    step(whole, torch.cat([first, second]))
    torch.testing.assert_close(split.mechanism.rescale, whole.mechanism.rescale)


def test_a_step_on_which_nothing_fires_does_not_end_the_penalty(arbitrary: Make, x: Tensor) -> None:
    sae = arbitrary(ReLU(Widths.of(D), F, p_end=0.2, p_begin=0.0))
    bias = sae.b_enc.detach().clone()
    for progress in (0.3, 0.3, 0.5):
        sae.progress = progress
        with torch.no_grad():
            sae.b_enc.fill_(-1e3)
        step(sae, x)
        assert float(sae.mechanism.rescale) > 0
        with torch.no_grad():
            sae.b_enc.copy_(bias)
    assert penalty(sae, x) > 0


def test_inference_leaves_it_alone(arbitrary: Make, x: Tensor) -> None:
    sae, other = (arbitrary(ReLU(Widths.of(D), F, p_end=0.2, p_begin=0.0)) for _ in range(2))
    for each in (sae, other):
        each.progress = 0.5
    penalty(sae.eval(), 5 * x)
    step(sae.train(), x)
    step(other, x)
    assert torch.equal(sae.mechanism.rescale, other.mechanism.rescale)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p_end": 0.0}, r"p_end is 0\.0; write a power above 0 and up to 1"),
        ({"p_end": 1.1}, r"p_end is 1\.1"),
        ({"p_begin": 1.0}, r"p_begin is 1\.0"),
        ({"p_begin": -0.1}, r"p_begin is -0\.1"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReLU(Widths.of(D), F, **settings)
