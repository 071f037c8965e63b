"""Matryoshka: nested prefixes by index or by frequency, over TopK and BatchTopK, with errors shared or kept apart."""

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae import BatchTopK, Matryoshka, Mechanism, Refinements, TopK, Widths, mechanisms
from lightsae.sae.matryoshka import DECAY, NestedOutput

T, D, F = 9, 6, 16
DEAD = (1, 4, 5, 8, 12)
GROUPS = [3, 1, 7, 5]
Make = Callable[..., Any]
Weights = dict[str, Tensor]
KINDS: dict[str, Callable[[], Mechanism]] = {
    "TopK": lambda: mechanisms.TopK(4, k_aux=2),
    "BatchTopK": lambda: mechanisms.BatchTopK(4, k_aux=2),
}


def latents_of(x: Tensor, w: Weights, kind: str) -> Tensor:
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    if kind == "TopK":
        edge = pre.sort(dim=1, descending=True).values[:, 3:4]
    else:
        edge = pre.flatten().sort(descending=True).values[T * 4 - 1]
    return torch.where((pre >= edge) & (pre > 0), pre, 0)


def members(groups: list[int], frequency: Tensor | None) -> list[list[int]]:
    """The latents that each prefix adds."""
    order = list(range(F)) if frequency is None else sorted(range(F), key=lambda i: -frequency[i])
    return [order[start:stop] for start, stop in pairwise([0, *accumulate(groups)])]


def nested_errors(x: Tensor, w: Weights, kind: str, parts: list[list[int]], fixed: list[Tensor] | None) -> list[Tensor]:
    """The squared error of every token for every prefix; with `fixed`, inner parts are taken from there.

    The bias belongs to every prefix.
    """
    latents, errors = latents_of(x, w, kind), []
    for number, part in enumerate(parts):
        inner = torch.zeros_like(x)
        for before, others in enumerate(parts[:number]):
            inner = inner + (latents[:, others] @ w["W_dec"][others] if fixed is None else fixed[before])
        x_hat = w["b_dec"] + inner + latents[:, part] @ w["W_dec"][part]
        errors.append(((x - x_hat) ** 2).sum(1))
    return errors


def make(arbitrary: Make, kind: str, order: str = "index", **settings: Any) -> Matryoshka:
    sae: Matryoshka = arbitrary(Matryoshka(Widths.of(D), F, KINDS[kind](), order=order, **settings))
    if order == "frequency":
        sae.frequency.copy_(torch.rand(F, generator=torch.Generator().manual_seed(3)))
    return sae


@pytest.fixture
def x(normal: Make) -> Tensor:
    return normal(T, D, seed=1) + 3


# -- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["index", "frequency"])
@pytest.mark.parametrize("groups", [GROUPS, [F], [1] * F])
def test_mse_and_its_gradients_follow_the_formula(
    arbitrary: Make, agree: Make, x: Tensor, kind: str, order: str, groups: list[int]
) -> None:
    sae = make(arbitrary, kind, order, groups=groups)
    parts = members(groups, sae.frequency if order == "frequency" else None)

    def reference(w: Weights) -> Tensor:
        errors = torch.stack(nested_errors(0.4 * x, w, kind, parts, None)).mean(0)
        return errors.mean() / ((0.4 * (x - x.mean(0))) ** 2).sum(1).mean()

    agree(sae, x, x, "mse", reference)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["index", "frequency"])
def test_detached_each_prefix_teaches_what_it_adds(
    arbitrary: Make, agree: Make, weights_of: Make, x: Tensor, kind: str, order: str
) -> None:
    """The value is that of the shared form; what the inner prefixes contribute to an outer one is held fixed."""
    sae = make(arbitrary, kind, order, groups=GROUPS, detach_inner=True)
    shared = make(arbitrary, kind, order, groups=GROUPS)
    parts = members(GROUPS, sae.frequency if order == "frequency" else None)
    w = weights_of(sae)
    latents = latents_of(0.4 * x, w, kind)
    fixed = [latents[:, part] @ w["W_dec"][part] for part in parts]

    def reference(w: Weights) -> Tensor:
        errors = torch.stack(nested_errors(0.4 * x, w, kind, parts, fixed)).mean(0)
        return errors.mean() / ((0.4 * (x - x.mean(0))) ** 2).sum(1).mean()

    agree(sae, x, x, "mse", reference)
    first, second = (each.squared_error(0.4 * x, each(x)) for each in (sae, shared))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("detach_inner", [False, True])
def test_a_tilted_mean_is_of_the_tokens_errors_over_all_prefixes(
    arbitrary: Make, agree: Make, weights_of: Make, x: Tensor, detach_inner: bool
) -> None:
    tilt = 0.7
    sae = make(arbitrary, "TopK", groups=GROUPS, detach_inner=detach_inner, refinements=Refinements(tilt=tilt))
    parts, w = members(GROUPS, None), weights_of(sae)
    latents = latents_of(0.4 * x, w, "TopK")
    fixed = [latents[:, part] @ w["W_dec"][part] for part in parts] if detach_inner else None
    now = torch.stack(nested_errors(0.4 * x, w, "TopK", parts, None)).mean(0)
    weights = (tilt * now / now.mean()).exp()
    weights = weights / weights.sum()

    def reference(w: Weights) -> Tensor:
        errors = torch.stack(nested_errors(0.4 * x, w, "TopK", parts, fixed)).mean(0)
        return (weights * errors).sum() / ((0.4 * (x - x.mean(0))) ** 2).sum(1).mean()

    agree(sae, x, x, "mse", reference)


@pytest.mark.parametrize("detach_inner", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_auxk_learns_from_the_error_of_the_whole(
    arbitrary: Make, agree: Make, weights_of: Make, with_dead: Make, x: Tensor, kind: str, detach_inner: bool
) -> None:
    sae = make(arbitrary, kind, groups=GROUPS, detach_inner=detach_inner)
    w, dead = weights_of(sae), list(DEAD)
    error = 0.4 * x - latents_of(0.4 * x, w, kind) @ w["W_dec"] - w["b_dec"]

    def reference(w: Weights) -> Tensor:
        pre = ((0.4 * x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])[:, dead]
        edge = pre.sort(dim=1, descending=True).values[:, 1:2]
        predicted = torch.where((pre >= edge) & (pre > 0), pre, 0) @ w["W_dec"][dead]
        return ((error - predicted) ** 2).sum() / (error**2).sum()

    agree(sae, x, x, "auxk", reference, with_dead(F, DEAD))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["index", "frequency"])
def test_gradcheck(arbitrary: Make, gradcheck: Make, x: Tensor, kind: str, order: str) -> None:
    assert gradcheck(make(arbitrary, kind, order, groups=GROUPS), x, x, "mse")


def test_gradients_of_a_detached_prefix_reach_what_it_adds_alone(arbitrary: Make, x: Tensor) -> None:
    sae = make(arbitrary, "TopK", groups=GROUPS, detach_inner=True)
    fires = set((sae.encode(x) > 0).any(0).nonzero().flatten().tolist())
    for number, part in enumerate(members(GROUPS, None)):
        sae.zero_grad()
        output = sae(x)
        assert isinstance(output, NestedOutput)
        assert output.prefixes is not None
        output.prefixes[:, number].square().sum().backward()
        taught = fires & set(part)
        assert set(sae.W_dec.grad.any(1).nonzero().flatten().tolist()) == taught
        assert set(sae.W_enc.grad.any(0).nonzero().flatten().tolist()) == taught
        assert sae.b_dec.grad.any(), "the bias belongs to every prefix"
    assert len(fires) > 4


# -- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"groups": GROUPS}, {"order": "frequency", "detach_inner": True}])
def test_the_last_prefix_is_the_plain_dictionary(
    arbitrary: Make, x: Tensor, kind: str, settings: dict[str, Any]
) -> None:
    sae = make(arbitrary, kind, **settings)
    plain = arbitrary((TopK if kind == "TopK" else BatchTopK)(Widths.of(D), F, k=4))
    for each in (sae, plain):
        if kind == "BatchTopK":
            each.mechanism.threshold.fill_(0.8)
    for training in (True, False):
        mine, its = sae.train(training)(x), plain.train(training)(x)
        torch.testing.assert_close(mine.x_hat, its.x_hat, rtol=1e-12, atol=1e-12)
        assert torch.equal(mine.dense_latents(), its.dense_latents())
        assert torch.equal(sae.encode(x), its.dense_latents())


@pytest.mark.parametrize("order", ["index", "frequency"])
def test_prefixes_of_dense_latents(arbitrary: Make, x: Tensor, order: str) -> None:
    sae = make(arbitrary, "TopK", order, groups=GROUPS)
    parts = members(GROUPS, sae.frequency if order == "frequency" else None)
    latents, output = sae.encode(x), sae(x)
    for number in range(len(GROUPS)):
        kept = [i for part in parts[: number + 1] for i in part]
        prefix = sae.prefix(latents, number)
        assert torch.equal(prefix[:, kept], latents[:, kept])
        assert prefix.count_nonzero() == latents[:, kept].count_nonzero()
        torch.testing.assert_close(sae.decode(prefix) * 0.4, output.prefixes[:, number], rtol=1e-12, atol=1e-12)
    assert torch.equal(sae.prefix(latents, len(GROUPS) - 1), latents)


def test_a_token_on_which_nothing_fires(arbitrary: Make, x: Tensor) -> None:
    sae = make(arbitrary, "BatchTopK", groups=GROUPS)
    x = torch.cat([sae.b_dec.detach()[None] / 0.4, 100 * x])
    with torch.no_grad():
        sae.b_enc.zero_()
    output = sae(x)
    assert (output.dense_latents()[0] == 0).all()
    torch.testing.assert_close(output.prefixes[0], sae.b_dec.expand(4, D))


# -- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d_sae", "bounds"),
    [
        (16, [1, 2, 4, 8, 16]),
        (3072, [192, 384, 768, 1536, 3072]),
        (40, [2, 5, 10, 20, 40]),
        (4, [1, 2, 4]),
        (1, [1]),
    ],
)
def test_by_default_each_prefix_is_twice_the_one_before(d_sae: int, bounds: list[int]) -> None:
    sae = Matryoshka(Widths.of(D), d_sae, mechanisms.TopK(1))
    counts = [int(sae.prefix(torch.ones(d_sae), number).sum()) for number in range(len(bounds))]
    assert counts == bounds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": [3, 4]}, r"groups is \[3, 4\], which adds up to 7; it has to be d_sae \(16\)"),
        ({"groups": [17]}, "adds up to 17"),
        ({"groups": [8, 0, 8]}, r"groups is \[8, 0, 8\]; write sizes of 1 or more"),
        ({"groups": [20, -4]}, "write sizes of 1 or more"),
        ({"groups": []}, r"groups is \[\]"),
    ],
)
def test_groups_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Matryoshka(Widths.of(D), F, mechanisms.TopK(2), **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mechanism", [mechanisms.ReLU, mechanisms.JumpReLU, mechanisms.Gated])
def test_mechanisms_that_select_alone(mechanism: type[Mechanism]) -> None:
    with pytest.raises(ConfigError, match=rf"mechanism is {mechanism.__name__}; Matryoshka takes TopK or"):
        Matryoshka(Widths.of(D), F, mechanism())


def test_settings_of_the_mechanism_are_named_under_it() -> None:
    with pytest.raises(ConfigError, match=r"mechanism\.k is 99"):
        Matryoshka(Widths.of(D), F, mechanisms.BatchTopK(99))


# -- frequency -------------------------------------------------------------------------------------------------------


def test_the_frequency_is_a_running_mean_over_steps(arbitrary: Make, normal: Make) -> None:
    sae = make(arbitrary, "TopK", "frequency")
    sae.constrain()
    expected = sae.frequency.clone()
    for batches in ([normal(T, D, seed=4)], [normal(T, D, seed=5), 2 * normal(T, D, seed=6)]):
        shares = []
        for x in batches:
            output = sae(x)
            sae.observe(output)
            shares.append((output.dense_latents() > 0).double().mean(0))
        sae.commit()
        expected = DECAY * expected + (1 - DECAY) * torch.stack(shares).mean(0)
        torch.testing.assert_close(sae.frequency, expected)


def test_places_that_topk_keeps_at_zero_do_not_count(arbitrary: Make, x: Tensor) -> None:
    sae = make(arbitrary, "TopK", "frequency")
    before = sae.frequency.clone()
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)
    sae.observe(sae(x))
    sae.commit()
    torch.testing.assert_close(sae.frequency, DECAY * before)


def test_at_the_start_the_order_is_that_of_the_latents() -> None:
    by_frequency = Matryoshka(Widths.of(D), F, mechanisms.TopK(2), order="frequency")
    by_index = Matryoshka(Widths.of(D), F, mechanisms.TopK(2))
    ones = torch.ones(F)
    for number in range(5):
        assert torch.equal(by_frequency.prefix(ones, number), by_index.prefix(ones, number))
    by_frequency.frequency.copy_(torch.linspace(0, 1, F))
    by_frequency.reset_parameters()
    assert (by_frequency.frequency == 0).all(), "a new start forgets"


def test_by_index_nothing_is_counted() -> None:
    assert "frequency" not in Matryoshka(Widths.of(D), F, mechanisms.TopK(2)).state_dict()


def test_the_most_frequent_come_to_lie_in_the_inner_prefixes(normal: Make) -> None:
    torch.manual_seed(0)
    sae = Matryoshka(Widths.of(D), F, mechanisms.TopK(1), order="frequency")
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.copy_(torch.arange(float(F)))  # the last latent always wins
    for seed in range(3):
        sae.observe(sae(normal(T, D, seed=seed).float()))
        sae.commit()
    first = sae.prefix(torch.ones(F), 0)
    assert first.nonzero().flatten().tolist() == [F - 1]
