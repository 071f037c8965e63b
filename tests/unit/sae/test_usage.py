"""Which latents are dead, after how many tokens, and that neither batching nor a resume changes it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lightsae.sae import LatentUsage, SparseLatents

F = 6


def fires(tokens: int, *latents: int) -> Tensor:
    """Latents of a batch: each of those named fires on one token of it."""
    dense = torch.zeros(tokens, F)
    for place, latent in enumerate(latents):
        dense[place % tokens, latent] = 1.0
    return dense


def step(usage: LatentUsage, *batches: Any) -> None:
    for batch in batches:
        usage.observe(batch)
    usage.commit()


@pytest.mark.parametrize("sparse", [False, True])
def test_dead_after_exactly_so_many_tokens(sparse: bool) -> None:
    usage = LatentUsage(F, dead_after=30)
    for _ in range(3):
        assert not usage.dead.any()
        batch = fires(10, 0, 2)
        step(usage, SparseLatents.from_dense(batch) if sparse else batch)
    assert usage.silent_tokens.tolist() == [0, 30, 0, 30, 30, 30]
    assert usage.dead.tolist() == [False, True, False, True, True, True]
    step(usage, fires(10, 1))
    assert usage.silent_tokens.tolist() == [10, 0, 10, 40, 40, 40]
    assert usage.dead.tolist() == [False, False, False, True, True, True]


def test_one_token_short_of_it_is_alive() -> None:
    usage = LatentUsage(F, dead_after=30)
    step(usage, fires(29))
    assert not usage.dead.any()
    step(usage, fires(1))
    assert usage.dead.all()


def test_a_place_kept_by_top_k_at_zero_does_not_fire() -> None:
    usage = LatentUsage(F, dead_after=5)
    values, indices = torch.tensor([[1.0, 0.0]] * 5), torch.tensor([[0, 3]] * 5)
    step(usage, SparseLatents.from_rows(values, indices, F))
    assert usage.dead.tolist() == [False, True, True, True, True, True]


def test_batches_of_a_step_count_together() -> None:
    accumulated, whole = LatentUsage(F, 100), LatentUsage(F, 100)
    first, second = fires(10, 0, 1), fires(10, 1, 5)
    step(accumulated, first, second)
    step(whole, torch.cat([first, second]))
    assert torch.equal(accumulated.silent_tokens, whole.silent_tokens)
    assert accumulated.silent_tokens.tolist() == [0, 0, 20, 20, 20, 0]


def test_observing_alone_moves_no_count() -> None:
    usage = LatentUsage(F, 10)
    usage.observe(fires(50))
    assert (usage.silent_tokens == 0).all()


def drive(usage: LatentUsage, start: int, stop: int, seen: list[list[int]]) -> None:
    generator = torch.Generator()
    for number in range(start, stop):
        generator.manual_seed(number)
        # Each latent fires in ever rarer steps, so that the list changes all the time.
        chosen = [i for i in range(F) if torch.rand((), generator=generator) < 0.5 ** (i + 1)]
        seen.append(usage.dead_list.tolist())
        step(usage, fires(10, *chosen))


@pytest.mark.parametrize("stop", [1, 15, 16, 17, 31, 32, 33, 40])
def test_a_resumed_count_gives_the_same_dead_lists(stop: int) -> None:
    whole: list[list[int]] = []
    drive(LatentUsage(F, 60), 0, 90, whole)
    resumed: list[list[int]] = []
    first = LatentUsage(F, 60)
    drive(first, 0, stop, resumed)
    state = copy.deepcopy(first.state_dict())
    second = LatentUsage(F, 60)
    second.load_state_dict(state)
    drive(second, stop, 90, resumed)
    assert resumed == whole
    assert len({tuple(dead) for dead in whole}) > 2


def test_the_list_is_that_of_the_last_refresh_but_one() -> None:
    usage = LatentUsage(F, dead_after=10)
    every = LatentUsage.REFRESH_STEPS
    lists = []
    for _ in range(3 * every):
        lists.append(usage.dead_list.tolist())
        step(usage, fires(10, 0))
    assert lists[: 2 * every] == [[]] * (2 * every)
    assert lists[2 * every :] == [[1, 2, 3, 4, 5]] * every


def test_reading_the_list_changes_nothing() -> None:
    read, unread = LatentUsage(F, 60), LatentUsage(F, 60)
    for number in range(70):
        for usage in (read, unread):
            step(usage, fires(10, number % 2))
        _ = read.dead_list, read.dead
    assert read.dead_list.tolist() == unread.dead_list.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("resumed", [False, True])
def test_revived_latents_are_alive_everywhere(resumed: bool) -> None:
    usage = LatentUsage(F, dead_after=10)
    for _ in range(40):
        step(usage, fires(10, 0))
    assert usage.dead_list.tolist() == [1, 2, 3, 4, 5]
    usage.revive(torch.tensor([2, 4]))
    if resumed:
        other = LatentUsage(F, dead_after=10)
        other.load_state_dict(usage.state_dict())
        usage = other
    assert usage.dead.tolist() == [False, True, False, True, False, True]
    assert usage.dead_list.tolist() == [1, 3, 5]
    for _ in range(LatentUsage.REFRESH_STEPS):
        step(usage, fires(10, 0, 2, 4))
        assert usage.dead_list.tolist() == [1, 3, 5]


def test_state_is_plain() -> None:
    state = LatentUsage(F, 10).state_dict()
    for value in state.values():
        assert isinstance(value, Tensor) or (isinstance(value, dict) and all(type(v) is int for v in value.values()))
