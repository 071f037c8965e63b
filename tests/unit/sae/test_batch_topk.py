"""BatchTopK: what the batch keeps, what is above the threshold, how the threshold is learned, and k on its way down."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae import BatchTopK, LatentUsage, Refinements, SparseAutoencoder, TopK, Widths
from lightsae.sae.mechanisms.batch_topk import DECAY, smallest_positive
from lightsae.sae.mechanisms.batch_topk import BatchTopK as Mechanism

T, D, F = 9, 6, 13
DEAD = (1, 4, 5, 8, 12)
Make = Callable[..., Any]
Normal = Callable[..., Tensor]


def largest_of_all(pre: Tensor, k: int) -> Tensor:
    """The T * k largest entries of the batch, one after the other; those that are not positive count as 0."""
    kept = torch.zeros_like(pre)
    places = sorted(((value.item(), t, f) for t, row in enumerate(pre) for f, value in enumerate(row)), reverse=True)
    for value, t, f in places[: len(pre) * k]:
        kept[t, f] = max(value, 0.0)
    return kept


def dense_largest_of_all(pre: Tensor, k: int) -> Tensor:
    edge = pre.flatten().sort(descending=True).values[len(pre) * k - 1]
    return torch.where((pre >= edge) & (pre > 0), pre, 0)


def pre_of(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    return (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]


@pytest.fixture
def x(normal: Normal) -> Tensor:
    return normal(T, D, seed=1) + 3


# -- the selection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 7, F])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 1.0, 100.0])
def test_the_batch_keeps_its_largest(normal: Normal, k: int, threshold: float) -> None:
    """Whatever the threshold: it only saves work where enough entries lie near it."""
    mechanism = Mechanism(k)
    mechanism.build(F)
    mechanism.threshold.fill_(threshold)
    pre = normal(T, F, seed=3) + 0.3
    values, pattern = mechanism.select(pre)
    dense = torch.zeros(T, F, dtype=torch.float64)
    dense[pattern.token_of, pattern.indices] = values
    assert torch.equal(dense, largest_of_all(pre, k))
    assert len(values) == T * k
    assert pattern.offsets.tolist() == sorted(pattern.offsets.tolist())


def test_hard_tokens_get_more_than_easy_ones(normal: Normal) -> None:
    mechanism = Mechanism(3)
    mechanism.build(F)
    pre = normal(T, F, seed=3).abs() * torch.linspace(0.1, 3, T)[:, None]
    _, pattern = mechanism.select(pre)
    counts = pattern.offsets.diff()
    assert counts.sum() == 3 * T
    assert counts[0] == 0
    assert counts[-1] > 6


def test_where_fewer_are_positive_the_rest_is_zero(normal: Normal) -> None:
    mechanism = Mechanism(5)
    mechanism.build(F)
    pre = -normal(T, F, seed=3).abs()
    pre[2, 3] = 1.5
    values, pattern = mechanism.select(pre)
    assert values.count_nonzero() == 1
    assert (pattern.token_of[values > 0].item(), pattern.indices[values > 0].item()) == (2, 3)


@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.2, 50.0])
def test_at_inference_what_is_not_below_the_threshold(normal: Normal, threshold: float) -> None:
    mechanism = Mechanism(5).eval()
    mechanism.build(F)
    mechanism.double().threshold.fill_(threshold)
    pre = normal(T, F, seed=3)
    pre[4, 7] = threshold  # at the threshold itself it fires, unless that is 0
    values, pattern = mechanism.select(pre)
    expected = [
        (t, f, pre[t, f].item()) for t in range(T) for f in range(F) if pre[t, f] > 0 and pre[t, f] >= threshold
    ]
    assert list(zip(pattern.token_of.tolist(), pattern.indices.tolist(), values.tolist(), strict=True)) == expected
    assert pattern.offsets.tolist() == [sum(t < row for t, _, _ in expected) for row in range(T + 1)]


def test_encode_in_both_modes_follows_the_formula(arbitrary: Make, weights_of: Make, x: Tensor) -> None:
    sae = arbitrary(BatchTopK(Widths.of(D), F, k=3))
    sae.mechanism.threshold.fill_(0.9)
    pre = pre_of(0.4 * x, weights_of(sae))
    torch.testing.assert_close(sae.encode(x), largest_of_all(pre, 3), rtol=1e-12, atol=1e-12)
    sae.eval()
    torch.testing.assert_close(sae.encode(x), torch.where(pre >= 0.9, pre, 0), rtol=1e-12, atol=1e-12)
    x_hat = (torch.where(pre >= 0.9, pre, 0) @ sae.W_dec + sae.b_dec) / 0.4
    torch.testing.assert_close(sae(x).x_hat, x_hat, rtol=1e-12, atol=1e-12)


def test_it_says_which_mode_it_is_in() -> None:
    sae = BatchTopK(Widths.of(D), F, k=3)
    sae.mechanism.threshold.fill_(0.25)
    assert "k=3, threshold=0.25; now: the largest of the batch" in repr(sae)
    assert "now: what is not below the threshold" in repr(sae.eval())


# -- the threshold ---------------------------------------------------------------------------------------------------


def test_it_starts_at_the_smallest_that_the_sample_keeps(normal: Normal) -> None:
    mechanism = Mechanism(4)
    mechanism.build(F)
    pre = normal(200, F, seed=5)
    mechanism.double().start_from(pre, torch.zeros(F, dtype=torch.float64))
    kept = largest_of_all(pre, 4)
    assert mechanism.threshold == kept[kept > 0].min()
    mechanism.eval()
    assert len(mechanism.select(pre)[0]) == 200 * 4


def steps(sae: SparseAutoencoder, *batches: list[Tensor]) -> list[float]:
    """End a step after each list of batches; return the threshold after each."""
    seen = []
    for of_step in batches:
        for x in of_step:
            sae.observe(sae(x))
        sae.commit()
        seen.append(float(sae.mechanism.threshold))
    return seen


def test_it_is_a_running_mean_over_steps_and_a_plain_one_over_the_batches_of_a_step(
    arbitrary: Make, weights_of: Make, normal: Normal
) -> None:
    sae = arbitrary(BatchTopK(Widths.of(D), F, k=3))
    sae.mechanism.threshold.fill_(0.5)
    sae.constrain()
    batches = [[normal(T, D, seed=7)], [normal(T, D, seed=8), 3 * normal(T, D, seed=9)], [normal(T, D, seed=10)]]
    expected, threshold = [], 0.5
    for of_step in batches:
        kept = [largest_of_all(pre_of(0.4 * x, weights_of(sae)), 3) for x in of_step]
        threshold = DECAY * threshold + (1 - DECAY) * sum(float(k[k > 0].min()) for k in kept) / len(kept)
        expected.append(threshold)
    assert steps(sae, *batches) == pytest.approx(expected, rel=1e-10)


def test_with_a_second_step_each_pass_has_a_threshold_of_its_own(
    arbitrary: Make, weights_of: Make, normal: Normal
) -> None:
    sae = arbitrary(BatchTopK(Widths.of(D), F, k=3, refinements=Refinements(second_step=0.3)))
    sae.constrain()
    w, batches = weights_of(sae), [normal(T, D, seed=seed) for seed in (7, 8, 9)]
    expected = {"first_threshold": 0.5, "threshold": 0.5}
    for name in expected:
        getattr(sae.mechanism, name).fill_(0.5)
    for batch in batches:
        first = largest_of_all(pre_of(0.4 * batch, w), 3)
        seen = 0.4 * batch + 0.3 * (0.4 * batch - first @ w["W_dec"] - w["b_dec"])
        kept = {"first_threshold": first, "threshold": largest_of_all(pre_of(seen, w), 3)}
        for name, value in expected.items():
            expected[name] = DECAY * value + (1 - DECAY) * float(kept[name][kept[name] > 0].min())
        steps(sae, [batch])
    for name, value in expected.items():
        assert float(getattr(sae.mechanism, name)) == pytest.approx(value, rel=1e-10), name
    assert abs(expected["first_threshold"] - expected["threshold"]) > 0.001


def test_with_a_second_step_too_the_l0_of_both_modes_agree(normal: Normal) -> None:
    """From the start, and where the thresholds settle."""
    torch.manual_seed(0)
    sae = BatchTopK(Widths.of(D), F, k=3, refinements=Refinements(second_step=1.5))
    sample, held_out = (normal(1000, D, seed=seed).float() for seed in (2000, 1000))
    sae.start_from({next(iter(sae.widths.read)): sample}, "sqrt_d")

    def l0() -> float:
        value = (sae.eval().encode(held_out) > 0).sum(1).float().mean().item()
        sae.train()
        return value

    assert l0() == pytest.approx(3, rel=0.05)
    steps(sae, *([normal(256, D, seed=seed).float()] for seed in range(500)))
    assert l0() == pytest.approx(3, rel=0.05)


def test_saved_before_each_pass_had_one_the_same_serves_both(arbitrary: Make, x: Tensor) -> None:
    sae, loaded = (
        arbitrary(BatchTopK(Widths.of(D), F, k=3, refinements=Refinements(second_step=0.3))).eval() for _ in range(2)
    )
    for name in ("first_threshold", "threshold"):
        getattr(sae.mechanism, name).fill_(0.7)
    before = {name: tensor for name, tensor in sae.state_dict().items() if "first_threshold" not in name}
    loaded.load_state_dict(before)
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert len(before) == len(sae.state_dict()) - 1, "nothing is added to what the caller holds"


def test_a_batch_that_keeps_nothing_positive_says_nothing(arbitrary: Make, normal: Normal) -> None:
    sae = arbitrary(BatchTopK(Widths.of(D), F, k=3))
    sae.mechanism.threshold.fill_(0.5)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    assert steps(sae, [normal(T, D)], [normal(T, D)]) == [0.5, 0.5]


def test_only_observed_batches_count(arbitrary: Make, normal: Normal) -> None:
    sae, other = (arbitrary(BatchTopK(Widths.of(D), F, k=3)) for _ in range(2))
    x = normal(T, D)
    other(2 * x)
    other.eval()(3 * x)
    other.train()
    assert steps(sae, [x]) == steps(other, [x])


def test_it_settles_where_the_l0_of_both_modes_agree(normal: Normal) -> None:
    torch.manual_seed(0)
    sae = BatchTopK(Widths.of(D), F, k=3)
    batches = [[normal(256, D, seed=seed).float()] for seed in range(700)]
    thresholds = steps(sae, *batches)
    assert thresholds[-1] == pytest.approx(thresholds[-100], rel=0.02)
    x = normal(2000, D, seed=1000).float()
    assert (sae.eval().encode(x) > 0).sum(1).float().mean().item() == pytest.approx(3, rel=0.05)


def test_the_smallest_above_zero() -> None:
    assert smallest_positive(torch.tensor([0.0, 3.0, 2.0, 0.0])) == 2
    assert smallest_positive(torch.tensor([0.0, 0.0])) == torch.inf
    assert smallest_positive(torch.tensor([])) == torch.inf


# -- losses ----------------------------------------------------------------------------------------------------------


def mse(x: Tensor, w: dict[str, Tensor], k: int) -> Tensor:
    error = x - dense_largest_of_all(pre_of(x, w), k) @ w["W_dec"] - w["b_dec"]
    return (error**2).sum() / ((x - x.mean(0)) ** 2).sum()


@pytest.mark.parametrize("k", [1, 3, F])
def test_mse_and_its_gradients_follow_the_formula(arbitrary: Make, agree: Make, x: Tensor, k: int) -> None:
    agree(arbitrary(BatchTopK(Widths.of(D), F, k=k)), x, x, "mse", lambda w: mse(0.4 * x, w, k))


@pytest.mark.parametrize("kind", [TopK, BatchTopK])
@pytest.mark.parametrize("multi_k", [1, 5, F])
def test_multi_is_the_mse_from_more_latents(
    arbitrary: Make, agree: Make, x: Tensor, kind: type[TopK], multi_k: int
) -> None:
    def reference(w: dict[str, Tensor]) -> Tensor:
        if kind is BatchTopK:
            return mse(0.4 * x, w, multi_k)
        pre = pre_of(0.4 * x, w)
        edge = pre.sort(dim=1, descending=True).values[:, multi_k - 1 : multi_k]
        error = 0.4 * x - torch.where((pre >= edge) & (pre > 0), pre, 0) @ w["W_dec"] - w["b_dec"]
        return (error**2).sum() / ((0.4 * (x - x.mean(0))) ** 2).sum()

    agree(arbitrary(kind(Widths.of(D), F, k=3, multi_k=multi_k)), x, x, "multi", reference)


@pytest.mark.parametrize("k_aux", [2, 100])
def test_auxk_and_its_gradients_follow_the_formula(
    arbitrary: Make, agree: Make, weights_of: Make, with_dead: Make, x: Tensor, k_aux: int
) -> None:
    sae = arbitrary(BatchTopK(Widths.of(D), F, k=3, k_aux=k_aux))
    w = weights_of(sae)
    fixed = 0.4 * x - dense_largest_of_all(pre_of(0.4 * x, w), 3) @ w["W_dec"] - w["b_dec"]

    def reference(w: dict[str, Tensor]) -> Tensor:
        pre = pre_of(0.4 * x, w)[:, list(DEAD)]
        edge = pre.sort(dim=1, descending=True).values[:, min(k_aux, len(DEAD)) - 1][:, None]
        predicted = torch.where((pre >= edge) & (pre > 0), pre, 0) @ w["W_dec"][list(DEAD)]
        return ((fixed - predicted) ** 2).sum() / (fixed**2).sum()

    agree(sae, x, x, "auxk", reference, with_dead(F, DEAD))


@pytest.mark.parametrize("term", ["mse", "multi"])
def test_gradcheck(arbitrary: Make, gradcheck: Make, x: Tensor, term: str) -> None:
    assert gradcheck(arbitrary(BatchTopK(Widths.of(D), F, k=3, multi_k=6)), x, x, term)


def test_gradcheck_of_auxk_to_the_encoder_of_the_dead(
    arbitrary: Make, gradcheck: Make, with_dead: Make, x: Tensor
) -> None:
    # With every live latent silent, the error is fixed in truth and not by decree alone.
    sae = arbitrary(BatchTopK(Widths.of(D), F, k=1, k_aux=2))
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.b_enc.fill_(-100.0)
        sae.b_enc[list(DEAD)] = 20.0
    sae.mechanism.select = lambda pre: Mechanism.select(sae.mechanism, pre - 1e6)
    sae.b_dec.requires_grad_(False)
    error = sae(x).x_hat_normalised
    assert (error == 0).all()
    assert gradcheck(sae, x, x, "auxk", with_dead(F, DEAD))
    sae.loss_terms(x, sae(x), with_dead(F, DEAD))["auxk"].backward()
    assert sae.W_enc.grad[:, list(DEAD)].abs().sum() > 0


# -- k on its way down -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TopK, BatchTopK])
def test_k_falls_linearly_in_training(kind: type[TopK], normal: Normal) -> None:
    sae = kind(Widths.of(D), F, k=2, k_start=12, k_fall=0.5)
    with torch.no_grad():
        sae.b_enc.fill_(50.0)  # everything is positive
    x = normal(T, D).float()
    expected = {0.0: 12, 0.05: 11, 0.1: 10, 0.25: 7, 0.45: 3, 0.5: 2, 0.7: 2, 1.0: 2}
    for progress, k in expected.items():
        sae.progress = progress
        assert sae.mechanism.present_k == k
        assert (sae(x).dense_latents() > 0).sum() == k * T
    sae.progress = 0.0
    assert sae.eval().mechanism.present_k == 2, "the fall is of the training alone"


def test_without_a_fall_k_is_k(normal: Normal) -> None:
    sae = TopK(Widths.of(D), F, k=4)
    for progress in (0.0, 0.3, 1.0):
        sae.progress = progress
        assert sae.mechanism.present_k == 4


def test_multi_has_a_default_weight_only_where_it_is_asked_for() -> None:
    assert "multi" not in TopK(Widths.of(D), F, k=4).mechanism.default_coefficients
    sae = TopK(Widths.of(D), F, k=4, multi_k=8)
    assert set(sae.mechanism.default_coefficients) == {"mse", "auxk", "multi"}
    x = torch.randn(T, D)
    assert set(sae.loss_terms(x, sae(x), LatentUsage(F, 10))) == {"mse", "auxk", "multi"}


@pytest.mark.parametrize("kind", [TopK, BatchTopK])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, r"k is 0; it must lie in 1\.\.d_sae \(13\)"),
        ({"k": 2, "k_start": 14}, r"k_start is 14"),
        ({"k": 2, "k_start": 0}, r"k_start is 0"),
        ({"k": 2, "multi_k": 14}, r"multi_k is 14"),
        ({"k": 2, "k_aux": 0}, r"k_aux is 0"),
        ({"k": 2, "k_start": 4, "k_fall": 0.0}, r"k_fall is 0\.0"),
        ({"k": 2, "k_start": 4, "k_fall": 1.5}, r"k_fall is 1\.5"),
    ],
)
def test_settings_that_cannot_work(kind: type[TopK], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        kind(Widths.of(D), F, **settings)
    assert "\n" not in str(error.value)
