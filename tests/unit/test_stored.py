"""Stored values against expected ones: what differs is named, what does not is passed."""

import math
from typing import Any

import pytest
import torch

from lightsae.stored import misfit

EXPECTED = {"step": 0, "rate": 0.1, "name": "a", "fused": True, "free": None, "rows": [{"w": torch.zeros(2, 3)}]}


def given(**changes: Any) -> dict[str, Any]:
    return EXPECTED | {"step": 4, "more": "x"} | changes


def test_what_fits() -> None:
    assert misfit(given(), EXPECTED) is None
    assert misfit(given(free={"any": "thing"}), EXPECTED) is None
    assert misfit(given(rows=({"w": torch.ones(2, 3)},)), EXPECTED) is None
    assert misfit({}, EXPECTED, partial=True) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": True}, "it.step is a bool, where a int should be"),
        ({"step": 4.0}, "it.step is a float, where a int should be"),
        ({"step": -1}, "it.step is -1"),
        ({"step": None}, "it.step is None, where a int should be"),
        ({"rate": math.nan}, "it.rate is nan"),
        ({"rate": math.inf}, "it.rate is inf"),
        ({"name": 3}, "it.name is a int, where a str should be"),
        ({"rows": []}, "it.rows has 0 entries, where 1 should be"),
        ({"rows": {}}, "it.rows is a dict, where a list should be"),
        ({"rows": [{}]}, "it.rows.0.w is missing"),
        ({"rows": [{"w": 0.0}]}, "it.rows.0.w is a float, where a tensor should be"),
        ({"rows": [{"w": torch.zeros(3, 2)}]}, "it.rows.0.w has shape (3, 2), where (2, 3) should be"),
        (
            {"rows": [{"w": torch.zeros(2, 3, dtype=torch.float64)}]},
            "it.rows.0.w has dtype torch.float64, where torch.float32 should be",
        ),
        ({"rows": [{"w": torch.full((2, 3), math.inf)}]}, "it.rows.0.w holds NaN or infinity"),
    ],
)
def test_what_does_not(changes: dict[str, Any], words: str) -> None:
    assert misfit(given(**changes), EXPECTED, "it") == words


def test_counts_are_not_negative_and_weights_may_be() -> None:
    assert misfit(torch.tensor([-1]), torch.tensor([0]), "counts") == "counts holds negative numbers"
    assert misfit(torch.tensor([-1.0]), torch.tensor([0.0])) is None
    assert misfit(torch.tensor([True]), torch.tensor([False])) is None
    # Sums of them overflow, they do not.
    largest = torch.full((4,), torch.finfo(torch.float32).max)
    assert misfit(largest, torch.zeros(4)) is None
