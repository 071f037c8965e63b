"""The toy model of superposition: more features than dimensions, and what sparsity does about it.

Axes:    I instances (sparsities x restarts), B samples, n features, m dimensions.
Source:  Elhage et al. 2022, "Toy Models of Superposition": h = W x, x' = ReLU(W^T h + b), loss sum_i I_i (x_i - x'_i)^2
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.randomness import keyed_generator

HELD_OUT_BATCHES, HELD_OUT_BATCH = 64, 4096
REPRESENTED = 0.5
SPARSEST = 0.9999


@dataclass(frozen=True)
class Superposition:
    """A toy model for each sparsity, trained side by side.

    Args:
        features: Number of features.
        dimensions: Number of neurons to hold them in.
        importance: Weight of each feature's error relative to the one before it.
        sparsities: Probabilities with which a feature is 0, as a list; one model each.
        restarts: Random starts of each model; the one with the least loss is kept.
        steps: Optimiser steps.
        batch: Samples in a step.
        lr: Learning rate of Adam at the start; falls linearly to 0.
        seed: Seed of every random draw.
        device: Where to train: cpu, cuda, mps. On the CPU, the same seed gives the same weights.
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
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("features", "dimensions", "restarts", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "write 1 or more")
        for name in ("importance", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(name, getattr(self, name), "write a number above 0")
        if not self.sparsities or not all(0 <= sparsity <= SPARSEST for sparsity in self.sparsities):
            raise ConfigError("sparsities", self.sparsities, f"write probabilities from 0 to {SPARSEST}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError):
            # What it says of a device that is missing runs to a page, and CUDA's builds differ in the kind of error.
            raise ConfigError(f"device is {self.device!r}, which cannot be used here; write cpu.") from None


@dataclass(frozen=True)
class Solution:
    """What a model learned at one sparsity.

    Attributes:
        sparsity: Probability with which a feature is 0.
        W: Columns are the features' directions, (m, n). Turned, which no output of the model can tell, so that the most
            important feature lies along the first axis, the second in the plane of the first two, and so on.
        b: Bias of the output, (n,).
        loss: On samples that it was not trained on, divided by the share of features that are not 0.
    """

    sparsity: float
    W: Float[Tensor, "m n"]
    b: Float[Tensor, " n"]
    loss: float

    @property
    def norms(self) -> Float[Tensor, " n"]:
        """How strongly each feature is represented: 0 not at all, about 1 in full."""
        norms: Tensor = self.W.norm(dim=0)
        return norms

    @property
    def represented(self) -> int:
        """The number of features with a norm above 0.5."""
        return int((self.norms > REPRESENTED).sum())

    @property
    def interference(self) -> Float[Tensor, " n"]:
        """How much of the others lies along each feature's unit direction d_i: sum over j != i of (d_i . W_j)^2."""
        unit = torch.nn.functional.normalize(self.W, dim=0)
        products = (unit.T @ self.W).square()
        return products.sum(1) - products.diagonal()

    @property
    def dimensions_per_feature(self) -> float:
        """The paper's measure m / |W|_F^2: 1 without superposition, 1/2 where pairs share a dimension."""
        return len(self.W) / float(self.W.square().sum())


def sparse_inputs(uniform: Float[Tensor, "B n"], sparsity: Float[Tensor, " I"]) -> Float[Tensor, "I B n"]:
    """Turn uniform draws into the inputs of every instance: 0 with its probability, else uniform on [0, 1]."""
    # One draw gives both whether a feature is 0 and its value. All instances share it: restarts are compared on equal
    # terms, and what comes out at one sparsity does not depend on the others.
    lowest = sparsity[:, None, None]
    return ((uniform - lowest) / (1 - lowest)).relu()


def reconstruct(
    W: Float[Tensor, "I m n"], b: Float[Tensor, "I n"], x: Float[Tensor, "I B n"]
) -> Float[Tensor, "I B n"]:
    """Return x' = ReLU(W^T W x + b)."""
    return torch.baddbmm(b[:, None], x @ W.mT, W).relu()


def weighted_loss(
    W: Float[Tensor, "I m n"], b: Float[Tensor, "I n"], x: Float[Tensor, "I B n"], importance: Float[Tensor, " n"]
) -> Float[Tensor, " I"]:
    """Return the mean over samples of sum_i I_i (x_i - x'_i)^2."""
    return ((x - reconstruct(W, b, x)).square() @ importance).mean(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    # The products are tiny: where other programs keep the cores busy, threads that wait for each other make training
    # five times slower. And so the weights do not depend on the number of cores.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def train(config: Superposition, progress: Callable[[int], object] = lambda step: None) -> list[Solution]:
    """Train all models at once, and return the best restart of each, in the order of `config.sparsities`.

    Args:
        config: What to train.
        progress: Called with the number of steps done.

    Raises:
        ConfigError: The learning rate was too high for every restart of a model.
    """
    device = torch.device(config.device)
    # Drawn on the CPU: the same starts and samples on every device.
    starts = torch.randn(
        config.restarts, config.dimensions, config.features, generator=keyed_generator(config.seed, "toy starts")
    )
    models = len(config.sparsities)
    W = (starts * config.dimensions**-0.5).repeat(models, 1, 1).to(device).requires_grad_()
    b = torch.zeros(len(W), config.features, device=device, requires_grad=True)
    sparsity = torch.tensor(config.sparsities, device=device).repeat_interleave(config.restarts)
    importance = config.importance ** torch.arange(config.features, dtype=torch.float32, device=device)
    # Errors shrink with the share of features that are not 0; divided by it, they are of one size.
    scale = 1 / (1 - sparsity)

    def loss_on(count: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(count, config.features, generator=generator)
        return weighted_loss(W, b, sparse_inputs(uniform.to(device), sparsity), importance) * scale

    optimizer = torch.optim.Adam([W, b], lr=config.lr)
    generator = keyed_generator(config.seed, "toy samples")
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        optimizer.zero_grad()
        loss_on(config.batch, generator).sum().backward()
        optimizer.step()
        progress(step + 1)
    held_out = keyed_generator(config.seed, "toy samples held out")
    with torch.no_grad():
        losses = torch.stack([loss_on(HELD_OUT_BATCH, held_out) for _ in range(HELD_OUT_BATCHES)]).mean(0)
    best, place = losses.cpu().nan_to_num(nan=math.inf).view(models, config.restarts).min(1)
    if not best.isfinite().all():
        raise ConfigError(f"lr is {config.lr}, with which training did not converge; write a smaller one.")
    kept = [model * config.restarts + int(restart) for model, restart in enumerate(place)]
    W, b = W.detach().cpu(), b.detach().cpu()
    return [
        Solution(sparsity, _turned(W[i]), b[i].clone(), float(loss))
        for sparsity, i, loss in zip(config.sparsities, kept, best, strict=True)
    ]


def _turned(W: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Rotate and mirror the hidden space so that W is upper triangular, with no negative number on the diagonal."""
    triangular = torch.linalg.qr(W.double(), mode="complete").R
    turn = torch.ones(len(W), 1, dtype=torch.float64)
    diagonal = triangular.diagonal()
    turn[: len(diagonal), 0] = torch.where(diagonal < 0, -1.0, 1.0)
    turned: Tensor = triangular * turn
    return turned.to(W.dtype)
