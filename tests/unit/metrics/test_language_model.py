import math

import pytest
import torch

from lightsae.metrics import (
    counted_targets,
    cross_entropy_recovered,
    token_cross_entropy,
    token_kl_divergence,
)


def test_cross_entropy_of_uniform_and_certain_predictions():
    tokens = torch.tensor([[3, 1, 2, 0]])
    assert torch.allclose(token_cross_entropy(torch.zeros(1, 4, 8), tokens), torch.full((1, 3), math.log(8)))
    certain = torch.full((1, 4, 8), -1e4)
    certain[0, torch.arange(3), tokens[0, 1:]] = 1e4
    assert torch.equal(token_cross_entropy(certain, tokens), torch.zeros(1, 3))


def test_each_position_is_scored_on_the_next_token():
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = 5.0
    first, second = token_cross_entropy(logits, torch.tensor([[0, 2, 1]]))[0]
    assert first < 0.1 < second


def test_kl_divergence_against_its_definition_and_its_direction():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    row = lambda probabilities: probabilities.log().expand(1, 2, 3)  # noqa: E731
    expected = (p * (p / q).log()).sum().item()
    assert token_kl_divergence(row(p), row(q)).item() == pytest.approx(expected, rel=1e-6)
    assert token_kl_divergence(row(q), row(p)).item() != pytest.approx(expected, rel=1e-2)
    assert torch.equal(token_kl_divergence(row(p), row(p)), torch.zeros(1, 1))


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.randn(2, 5, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens = torch.zeros(2, 5, dtype=torch.long)
    found = token_cross_entropy(logits, tokens)
    assert found.dtype == torch.float32
    assert torch.equal(found, token_cross_entropy(logits.float(), tokens))
    assert token_kl_divergence(logits, logits + 1).abs().max() < 1e-2


def test_special_targets_and_the_last_position_do_not_count():
    special = torch.tensor([[True, False, True, False]])
    assert counted_targets(special).tolist() == [[True, False, True]]


def test_recovered_is_one_for_no_loss_and_zero_for_the_ablation():
    clean, ablated = torch.tensor(2.0), torch.tensor(10.0)
    assert cross_entropy_recovered(clean, clean, ablated) == 1
    assert cross_entropy_recovered(clean, ablated, ablated) == 0
    assert cross_entropy_recovered(clean, torch.tensor(4.0), ablated) == 0.75
