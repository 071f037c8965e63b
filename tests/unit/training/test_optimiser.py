"""Gradients of one norm: what Adam sees does not depend on how large the errors of a start are."""

import pytest
import torch
from torch import Tensor, nn

from lightsae.training.optimiser import normalise_gradients


def with_gradient(*values: float) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(len(values)))
    parameter.grad = torch.tensor(values)
    return parameter


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_each_gradient_has_norm_one(factor: float) -> None:
    a, b, unused = with_gradient(3 * factor, -4 * factor), with_gradient(-2.0), nn.Parameter(torch.zeros(2))
    normalise_gradients([a, unused, b])
    torch.testing.assert_close(gradient(a), torch.tensor([0.6, -0.8]))
    torch.testing.assert_close(gradient(b), torch.tensor([-1.0]))
    assert unused.grad is None


def test_gradients_of_zero_stay() -> None:
    a = with_gradient(0.0, 0.0)
    normalise_gradients([a])
    assert torch.equal(gradient(a), torch.zeros(2))


def test_a_large_first_gradient_does_not_slow_the_later_steps_down() -> None:
    """Adam's second moments remember a thousand steps: one gradient of 100 among ones of 1 shortens all that follow."""
    way = {}
    for normalised in (False, True):
        parameter = nn.Parameter(torch.zeros(4))
        adam = torch.optim.Adam([parameter], lr=0.01)
        for step in range(100):
            parameter.grad = torch.full((4,), 100.0 if step == 0 else 1.0)
            if normalised:
                normalise_gradients([parameter])
            adam.step()
        way[normalised] = -float(parameter.detach().mean())
    assert way[True] == pytest.approx(100 * 0.01, rel=1e-3)
    assert way[False] < 0.5 * way[True]
