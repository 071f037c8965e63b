"""Matching pursuit: what is found, against one token at a time; when a token is done; what a step costs; refusals."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightsae.errors import ConfigError
from lightsae.sae import (
    MECHANISMS,
    VARIANTS,
    Crosscoder,
    LatentUsage,
    Matryoshka,
    Refinements,
    SiteRef,
    Transcoder,
    Widths,
)
from lightsae.sae.variants import trained
from lightsae.training.entries import Entry, build_saes

MatchingPursuit = MECHANISMS["MatchingPursuit"]
A, B = SiteRef("tiny", "mlp_in.1"), SiteRef("tiny", "mlp_out.1")


def one_token(x: Tensor, directions: Tensor, threshold: float, most: int, stops_when_repeated: bool) -> Tensor:
    """The search as it is told, for one token and without a batch."""
    left, latents, before = x.tolist(), [0.0] * len(directions), set[int]()
    for _ in range(most):
        products = [sum(a * b for a, b in zip(left, row, strict=True)) for row in directions.tolist()]
        best = max(range(len(products)), key=products.__getitem__)
        value = max(products[best], 0.0)
        latents[best] += value
        left = [a - value * b for a, b in zip(left, directions[best].tolist(), strict=True)]
        support = {i for i, latent in enumerate(latents) if latent != 0}
        if stops_when_repeated and support == before:
            break
        if sum(a * a for a in left) ** 0.5 < threshold:
            break
        before = support
    return torch.tensor(latents, dtype=torch.float64)


def directions(F: int, D: int, seed: int, shortest: float = 1.0, longest: float = 1.0) -> Tensor:
    drawn = torch.randn(F, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn) * torch.linspace(shortest, longest, F, dtype=torch.float64)[:, None]


def tokens(T: int, D: int, seed: int = 7) -> Tensor:
    return 2 * torch.randn(T, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def found(mechanism: Any, x: Tensor, rows: Tensor, centre: Tensor | None = None) -> Tensor:
    return mechanism.encode(x, centre, rows.T, torch.zeros(len(rows), dtype=x.dtype)).latents.to_dense()


@pytest.mark.parametrize("seed", range(16))
def test_each_token_is_searched_as_if_it_were_alone(seed: int) -> None:
    draw = random.Random(seed)
    D, F, T = draw.randint(1, 9), draw.randint(1, 40), draw.randint(1, 12)
    shortest = draw.choice([1.0, 0.4])
    rows, x = directions(F, D, seed, shortest, draw.choice([1.0, 1.3])), tokens(T, D, seed)
    x[0] *= draw.choice([0, 1, 1e-3])
    threshold, most, stops = draw.choice([0.0, 0.3, 2.0]), draw.choice([None, 1, 3, 50]), draw.random() < 0.5
    expected = torch.stack([one_token(token, rows, threshold, most or D, stops) for token in x])
    given = found(MatchingPursuit(threshold, most, stops), x, rows)
    torch.testing.assert_close(given, expected, rtol=1e-9, atol=1e-12)
    # What is left of nothing is rounding.
    assert torch.equal(given > 1e-12, expected > 1e-12)


def test_rows_longer_than_the_root_of_2_overshoot_as_they_do_one_by_one() -> None:
    rows, x = directions(20, 6, 0, 1.5, 1.6), tokens(10, 6)
    expected = torch.stack([one_token(token, rows, 0.1, 6, True) for token in x])
    torch.testing.assert_close(found(MatchingPursuit(0.1), x, rows), expected, rtol=1e-9, atol=1e-12)


def test_the_centre_is_taken_off_first_and_zero_has_no_latents() -> None:
    rows, centre = directions(20, 6, 0), tokens(1, 6)[0]
    x = torch.stack([centre, centre + 3 * rows[4]])
    latents = found(MatchingPursuit(1e-6), x, rows, centre)
    assert not latents[0].any()
    torch.testing.assert_close(latents[1], 3 * torch.eye(20, dtype=torch.float64)[4])


def test_what_is_below_the_threshold_at_first_has_one_step_all_the_same() -> None:
    rows = directions(20, 6, 0)
    assert found(MatchingPursuit(100.0), tokens(10, 6), rows).count_nonzero(1).tolist() == [1] * 10


def test_a_token_is_done_for_one_of_the_three_reasons() -> None:
    rows, x = directions(40, 8, 1), tokens(200, 8)
    latents = found(MatchingPursuit(0.5, max_iterations=5, stop_on_duplicate_support=False), x, rows)
    left, number = (x - latents @ rows).norm(dim=1), latents.count_nonzero(1)
    assert 0 < (left < 0.5).sum() < 200
    assert (number <= 5).all()
    assert found(MatchingPursuit(0.0, 1000), x, rows).count_nonzero(1).max() <= 40


class Shapes(TorchDispatchMode):
    """Notes the products of matrices and the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
            if func is torch.ops.aten.mm.default:
                self.rows.append(len(result))
        return result


def test_a_step_multiplies_the_tokens_that_go_on_and_nothing_grows_with_the_steps() -> None:
    T, D, F = 64, 16, 48
    x, rows = tokens(T, D), directions(F, D, 2)
    x *= torch.linspace(0.02, 1, T, dtype=torch.float64)[:, None]
    with Shapes() as shapes:
        MatchingPursuit(0.7, None, False).encode(x, None, rows.T, x.new_zeros(F))
    assert shapes.rows[0] == T
    assert shapes.rows == sorted(shapes.rows, reverse=True)
    assert len(set(shapes.rows)) > 3
    assert shapes.largest <= T * F


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"residual_threshold": float("nan")}, "residual_threshold is nan"),
        ({"residual_threshold": float("inf")}, "residual_threshold is inf"),
        ({"residual_threshold": 0.1, "max_iterations": 0}, "max_iterations is 0; write 1 or more"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VARIANTS["MatchingPursuit"](Widths.of(4), 8, **settings)


@pytest.mark.parametrize("name", ["aligned", "second_step", "tilt", "centre_input"])
def test_refinements_without_a_sense_are_refused(name: str) -> None:
    value = {"aligned": True, "centre_input": False}.get(name, 0.3)
    with pytest.raises(ConfigError, match=rf"refinements\.{name} is .*; MatchingPursuit does without"):
        VARIANTS["MatchingPursuit"](Widths.of(4), 8, 0.1, refinements=Refinements(**{name: value}))


def test_structures_of_other_sites_or_losses_are_refused() -> None:
    with pytest.raises(ConfigError, match="mechanism is MatchingPursuit, for an SAE that predicts the one site"):
        Transcoder(Widths({A: 4}, {B: 4}), 8, MatchingPursuit(0.1))
    with pytest.raises(ConfigError, match="mechanism is MatchingPursuit, for an SAE that predicts the one site"):
        Crosscoder(Widths({A: 4, B: 4}, {A: 4, B: 4}), 8, MatchingPursuit(0.1))
    with pytest.raises(ConfigError, match="mechanism is MatchingPursuit; Matryoshka takes"):
        Matryoshka(Widths.of(4), 8, MatchingPursuit(0.1))


def test_it_is_opened_and_not_trained() -> None:
    def make(widths: Widths) -> Any:
        return VARIANTS["MatchingPursuit"](widths, 8, 0.1)

    widths = Widths.of(4)
    for short, name in ((True, "sae"), (False, r"saes\.small\.sae")):
        with pytest.raises(ConfigError, match=rf"^{name} is MatchingPursuit, which is opened .*; write TopK\.$"):
            build_saes({"small": Entry(make)}, {"small": widths}, {}, "tied", short)
    with pytest.raises(ConfigError, match="opened from files and not trained"):
        make(widths).loss_terms(torch.ones(3, 4), make(widths)(torch.ones(3, 4)), LatentUsage(8, 10))
    assert MECHANISMS.keys() - trained(MECHANISMS).keys() == {"MatchingPursuit"}
    assert all(kind.train_instead in ("", *trained(MECHANISMS)) for kind in MECHANISMS.values())
