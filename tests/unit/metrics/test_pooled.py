import math

import pytest
import torch

from lightsae.metrics import LatentFrequencies, TokenMean


def test_dead_and_dense_shares_and_frequencies():
    metric = LatentFrequencies(5)
    # Of 1000 tokens: never, once, exactly 10%, just above, always.
    metric.update(torch.tensor([0, 0, 60, 50, 400]), 400)
    metric.update(torch.tensor([0, 1, 40, 51, 600]), torch.tensor(600))
    found = metric.compute()
    assert found["tokens"] == 1000
    assert found["dead_fraction"] == pytest.approx(1 / 5)
    assert found["dense_fraction"] == pytest.approx(2 / 5)
    assert found["dense_fraction_1pct"] == pytest.approx(3 / 5)
    expected = torch.tensor([1e-4, 1e-3, 0.1, 0.101, 1], dtype=torch.float64).log10()
    torch.testing.assert_close(found["log10_frequencies"], expected)


def test_counts_are_of_tokens_not_of_batches():
    metric = LatentFrequencies(1)
    metric.update(torch.tensor([1]), 1)
    metric.update(torch.tensor([0]), 99)
    assert metric.compute()["log10_frequencies"].item() == pytest.approx(-2)


def test_halves_merge_into_the_whole():
    whole, half = LatentFrequencies(3), LatentFrequencies(3)
    whole.update(torch.tensor([1, 0, 5]), 10)
    half.update(torch.tensor([0, 0, 4]), 6)
    other = LatentFrequencies(3)
    other.update(torch.tensor([1, 0, 1]), 4)
    half.merge_state(other)
    for name, value in whole.compute().items():
        assert torch.equal(half.compute()[name], value), name


def test_counts_survive_half_precision():
    metric = LatentFrequencies(1)
    metric.to(torch.bfloat16).update(torch.tensor([4097]), 8193)
    assert metric.firings.item() == 4097


def test_token_mean_pools_over_tokens_and_masks_without_touching_what_is_masked():
    mean = TokenMean()
    mean.update(torch.tensor([1.0, math.inf, 3.0]), torch.tensor([True, False, True]))
    mean.update(torch.tensor([8.0]))
    assert mean.compute() == 4
    assert mean.tokens == 3


def test_token_mean_of_vectors_keeps_its_digits_in_half_precision():
    values = torch.full((4096, 2), 100.125, dtype=torch.bfloat16)
    mean = TokenMean(2).to(torch.bfloat16)
    mean.update(values, torch.ones(4096, dtype=torch.bool))
    assert torch.equal(mean.compute(), values[0].double())


def test_token_means_merge():
    first, second = TokenMean(), TokenMean()
    first.update(torch.tensor([1.0]))
    second.update(torch.tensor([4.0, 4.0]))
    first.merge_state(second)
    assert first.compute() == 3
