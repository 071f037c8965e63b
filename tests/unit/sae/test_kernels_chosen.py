"""When Triton's kernels are used: on a card, in a dtype that was tested, if asked for; Triton need not be there."""

from dataclasses import dataclass

import pytest
import torch

from lightsae.sae import kernels


@dataclass
class OnCard:
    """What is asked about a tensor; none of CUDA's can be made here."""

    dtype: torch.dtype = torch.float32
    is_cuda: bool = True


@pytest.mark.parametrize(
    ("tensors", "asked", "installed", "used"),
    [
        ([OnCard()], "1", True, True),
        ([OnCard(torch.bfloat16), OnCard()], "1", True, True),
        ([OnCard()], "0", True, False),
        ([OnCard()], None, True, False),
        ([OnCard()], "1", False, False),
        ([OnCard(torch.float16)], "1", True, False),
        ([OnCard(torch.float64)], "1", True, False),
        ([OnCard(), OnCard(is_cuda=False)], "1", True, False),
    ],
)
def test_where_kernels_are_used(
    tensors: list[OnCard], asked: str | None, installed: bool, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    if asked is not None:
        monkeypatch.setenv(kernels.VARIABLE, asked)
    monkeypatch.setattr(kernels, "has_triton", lambda: installed)
    plain = getattr(kernels.used_for, "__wrapped__", kernels.used_for)  # without the check of shapes and types
    assert plain(*tensors) is used
