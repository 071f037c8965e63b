"""The toy model of superposition: more features than dimensions, and what sparsity does about it.

Axes:    I instances (sparsities x restarts), B samples, n features, m dimensions.
Source:  Elhage et al. 2022, "Toy Models of Superposition": h = W x, x' = ReLU(W^T h + b), loss sum_i I_i (x_i - x'_i)^2
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.randomness import keyed_generator

HELD_OUT = 8192


@dataclass(frozen=True)
class Superposition:
    """A toy model for each sparsity, trained side by side.

    Args:
        features: Number of features, n.
        dimensions: Dimensions to hold them in, m.
        importance: Weight of each feature's error relative to the one before it.
        sparsities: Probabilities with which a feature is 0, one model each.
        restarts: Random starts of each model; the one with the least loss is kept.
        steps: Optimiser steps.
        batch: Samples in a step.
        lr: Learning rate of Adam at the start; falls linearly to 0.
        seed: Of every draw.
    """

    features: int = 5
    dimensions: int = 2
    importance: float = 0.9
    sparsities: list[float] = field(default_factory=lambda: [0.0, 0.5, 0.75, 0.9, 0.97, 0.99])
    restarts: int = 8
    steps: int = 4000
    batch: int = 512
    lr: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("features", "dimensions", "restarts", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; write 1 or more.")
        for name in ("importance", "lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0.")
        if not self.sparsities or not all(0 <= sparsity < 1 for sparsity in self.sparsities):
            raise ConfigError(f"sparsities is {self.sparsities}; write probabilities from 0 up, below 1.")

    @property
    def weights_of_errors(self) -> Float[Tensor, " n"]:
        """The importance of each feature."""
        return self.importance ** torch.arange(self.features, dtype=torch.float32)


@dataclass(frozen=True)
class Solution:
    """What a model learned at one sparsity.

    Attributes:
        sparsity: Probability with which a feature is 0.
        W: Columns are the features' directions, (m, n).
        b: Bias of the output, (n,).
        loss: On held-out samples, divided by the share of features that are not 0.
    """

    sparsity: float
    W: Float[Tensor, "m n"]
    b: Float[Tensor, " n"]
    loss: float

    @property
    def norms(self) -> Float[Tensor, " n"]:
        """How strongly each feature is represented."""
        norms: Tensor = self.W.norm(dim=0)
        return norms

    @property
    def represented(self) -> int:
        """Features with more than half of a full representation."""
        return int((self.norms > 0.5).sum())

    @property
    def interference(self) -> Float[Tensor, " n"]:
        """How much of the other features lies along each feature's direction: sum over the others of (d_i . W_j)^2."""
        unit = torch.nn.functional.normalize(self.W, dim=0)
        products = (unit.T @ self.W).square()
        return products.sum(1) - products.diagonal()


def sample(config: Superposition, sparsity: Float[Tensor, " I"], count: int, generator: torch.Generator) -> Tensor:
    """Draw inputs, (I, count, n): each feature 0 with its instance's probability, else uniform on [0, 1]."""
    shape = (len(sparsity), count, config.features)
    values = torch.rand(shape, generator=generator)
    fires = torch.rand(shape, generator=generator) >= sparsity[:, None, None]
    return values * fires


def reconstruct(
    W: Float[Tensor, "I m n"], b: Float[Tensor, "I n"], x: Float[Tensor, "I B n"]
) -> Float[Tensor, "I B n"]:
    """Return x' = ReLU(W^T W x + b)."""
    return torch.baddbmm(b[:, None], x @ W.transpose(1, 2), W).relu()


def train(config: Superposition, progress: Callable[[int], None] = lambda step: None) -> list[Solution]:
    """Train all models, and return the best restart of each.

    Args:
        config: What to train.
        progress: Called with the number of steps done.
    """
    sparsity = torch.tensor(config.sparsities).repeat_interleave(config.restarts)
    generator = keyed_generator(config.seed, "superposition")
    W = torch.randn(len(sparsity), config.dimensions, config.features, generator=generator) * config.dimensions**-0.5
    W.requires_grad_()
    b = torch.zeros(len(sparsity), config.features, requires_grad=True)
    importance = config.weights_of_errors
    # Errors shrink with the share of features that fire; dividing by it gives all models the same learning rate.
    scale = 1 / (1 - sparsity)
    optimizer = torch.optim.Adam([W, b], lr=config.lr)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        loss = _losses(W, b, sample(config, sparsity, config.batch, generator), importance) * scale
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        progress(step + 1)
    with torch.no_grad():
        held_out = sample(config, sparsity, HELD_OUT, keyed_generator(config.seed, "superposition, held out"))
        losses = (_losses(W, b, held_out, importance) * scale).view(-1, config.restarts)
    chosen = losses.argmin(1)
    kept = [place * config.restarts + int(best) for place, best in enumerate(chosen)]
    return [
        Solution(config.sparsities[place], W[i].detach().clone(), b[i].detach().clone(), float(losses.view(-1)[i]))
        for place, i in enumerate(kept)
    ]


def _losses(W: Tensor, b: Tensor, x: Tensor, importance: Tensor) -> Float[Tensor, " I"]:
    return ((x - reconstruct(W, b, x)).square() @ importance).mean(1)
