"""GPT-2's activation in place: transformers' own bits, and its gradient."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel
from transformers.activations import NewGELUActivation

from lightsae.lm import LanguageModel
from lightsae.lm.gelu import InPlaceGELU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_are_those_of_transformers(dtype: torch.dtype) -> None:
    x = (4 * torch.randn(64, 65, generator=torch.Generator().manual_seed(0))).to(dtype)
    given = x.clone()
    with torch.no_grad():
        assert torch.equal(InPlaceGELU()(x), NewGELUActivation()(x))
    assert torch.equal(x, given)


def test_a_gradient_is_that_of_transformers() -> None:
    def gradient(activation: torch.nn.Module) -> torch.Tensor:
        x = torch.linspace(-3, 3, 31, requires_grad=True)
        activation(x).square().sum().backward()
        assert x.grad is not None
        return x.grad

    assert torch.equal(gradient(InPlaceGELU()), gradient(NewGELUActivation()))


def test_a_loaded_gpt2_has_it_and_gives_the_same_logits(make_model: Callable[..., Path]) -> None:
    folder = make_model("gpt2")
    model = LanguageModel.from_pretrained(str(folder), dtype="float32")
    assert sum(isinstance(module, InPlaceGELU) for module in model.model.modules()) == 2
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        assert torch.equal(model.logits(tokens), GPT2LMHeadModel.from_pretrained(folder)(tokens).logits)
