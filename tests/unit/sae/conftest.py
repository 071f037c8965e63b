"""Loss terms held against formulas that are written densely in float64 and differentiated by central differences.

No autograd rule of the package, or of torch, is taken on trust. Where a formula holds something fixed (an error that is
a target, weights of tokens), its reference works it out beforehand, from weights that do not move.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightsae.sae import LatentUsage, SparseAutoencoder

Weights = dict[str, Tensor]
Reference = Callable[[Weights], Tensor]


def numeric_gradients(function: Reference, weights: Weights, step: float = 1e-6) -> Weights:
    gradients = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        for place in range(tensor.numel()):
            sides = []
            for sign in (1, -1):
                moved = {key: value.clone() for key, value in weights.items()}
                moved[name].view(-1)[place] += sign * step
                sides.append(function(moved))
            gradients[name].view(-1)[place] = (sides[0] - sides[1]) / (2 * step)
    return gradients


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """Normal numbers in float64 that follow from shape and seed."""

    def draw(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return draw


@pytest.fixture
def arbitrary(normal: Callable[..., Tensor]) -> Callable[[SparseAutoencoder], SparseAutoencoder]:
    """Put a dictionary into float64, with weights that are nothing special: untied, biased, rows of any norm."""

    def fill(sae: SparseAutoencoder) -> SparseAutoencoder:
        sae.double()
        with torch.no_grad():
            for seed, (name, parameter) in enumerate(sorted(sae.named_parameters()), start=10):
                if "threshold" not in name:
                    parameter.copy_(0.7 * normal(*parameter.shape, seed=seed))
            sae.input_scale.copy_(torch.linspace(0.4, 0.6, len(sae.input_scale), dtype=torch.float64))
            sae.output_scale.copy_(torch.linspace(0.4, 0.6, len(sae.output_scale), dtype=torch.float64))
        return sae

    return fill


@pytest.fixture
def weights_of() -> Callable[[SparseAutoencoder], Weights]:
    def copies(sae: SparseAutoencoder) -> Weights:
        return {name: parameter.detach().clone() for name, parameter in sae.named_parameters()}

    return copies


@pytest.fixture
def agree(weights_of: Callable[[SparseAutoencoder], Weights]) -> Callable[..., None]:
    """Assert that a loss term is what the reference says, in value and in the gradient of every parameter."""

    def check(
        sae: SparseAutoencoder,
        x: Tensor,
        target: Tensor,
        term: str,
        reference: Reference,
        usage: LatentUsage | None = None,
    ) -> None:
        usage = LatentUsage(sae.d_sae, 10) if usage is None else usage
        value = sae.loss_terms(target, sae(x), usage)[term]
        torch.testing.assert_close(value.detach(), reference(weights_of(sae)), rtol=1e-10, atol=1e-12)
        sae.zero_grad()
        value.backward()
        expected = numeric_gradients(reference, weights_of(sae))
        # What a difference of two values of this size can tell.
        noise = 1e-8 + 1e-9 * abs(value.item())
        for name, parameter in sae.named_parameters():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=noise, msg=lambda m, n=name: f"{n}: {m}")

    return check


@pytest.fixture
def gradcheck() -> Callable[..., bool]:
    """Torch's own check of a term's gradients, of every parameter."""

    def check(sae: SparseAutoencoder, x: Tensor, target: Tensor, term: str, usage: LatentUsage | None = None) -> bool:
        usage = LatentUsage(sae.d_sae, 10) if usage is None else usage

        class Term(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.sae = sae

            def forward(self) -> Tensor:
                return self.sae.loss_terms(target, self.sae(x), usage)[term]

        names = [name for name, _ in sae.named_parameters()]

        def function(*values: Tensor) -> Tensor:
            named = {f"sae.{name}": value for name, value in zip(names, values, strict=True)}
            return torch.func.functional_call(module, named, ())

        module = Term()
        return torch.autograd.gradcheck(function, tuple(sae.parameters()))

    return check


@pytest.fixture
def with_dead() -> Callable[[int, tuple[int, ...]], LatentUsage]:
    """Counts by which some latents are known to be dead."""

    def make(d_sae: int, latents: tuple[int, ...]) -> LatentUsage:
        usage = LatentUsage(d_sae, dead_after=10)
        usage.known_dead[list(latents)] = True
        return usage

    return make
