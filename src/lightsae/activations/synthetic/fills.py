"""Fills and held-out batches of a synthetic world: drawn by number, so that nothing has to be stored to go on.

Axes: T tokens, D width.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.stream import Fill, NumberedFills, StreamPlan, numbered
from lightsae.activations.synthetic.world import SyntheticWorld
from lightsae.activations.timing import Timings
from lightsae.randomness import keyed_generator
from lightsae.sae.sites import SiteRef

SITE = SiteRef("", "synthetic")
# Tokens drawn at once; the numbers that are drawn depend on it.
_TOKENS_AT_ONCE = 1 << 14


class SyntheticFills(NumberedFills):
    """Makes fills of activations, drawn by a generator that is keyed by the fill's number."""

    def __init__(
        self,
        world: SyntheticWorld,
        plan: StreamPlan,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        timings: Timings,
    ) -> None:
        self.world, self.plan, self.timings = world, plan, timings
        self._buffer = torch.empty(tokens, world.width, dtype=dtype, device=device)

    def fill(self, number: int) -> Fill:
        tokens, device = len(self._buffer), self._buffer.device
        with self.timings.measure("text", device):
            generator = _generator(self.plan.seed, f"synthetic, rank {self.plan.rank}", number, device)
            for start in range(0, tokens, _TOKENS_AT_ONCE):
                part = self._buffer[start : start + _TOKENS_AT_ONCE]
                part.copy_(self.world.activations(self.world.sample(len(part), generator), generator))
        everything = _batch(self._buffer, (number * self.plan.world + self.plan.rank) * tokens)
        return Fill(everything, torch.arange(tokens, device=device))


class SyntheticValidation:
    """Held-out samples with their truth, the same in every validation; as many for each rank, in whole batches."""

    def __init__(
        self,
        world: SyntheticWorld,
        tokens: int,
        batch_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.world, self.dtype, self.device = world, dtype, device
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.batch_tokens = max(1, min(batch_tokens, tokens // world_size))
        self._batches = max(1, tokens // (self.batch_tokens * world_size))

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[ActivationBatch]:
        return numbered(self._draw(index * self.world_size + self.rank) for index in range(len(self)))

    def _draw(self, number: int) -> ActivationBatch:
        generator = _generator(self.seed, "synthetic, validation", number, self.device)
        truth = self.world.sample(self.batch_tokens, generator)
        values = self.world.activations(truth, generator).to(self.dtype)
        return replace(_batch(values, number * self.batch_tokens), truth=truth)


def _generator(seed: int, purpose: str, step: int, device: torch.device) -> torch.Generator:
    """Return a keyed generator that draws on the device."""
    generator = keyed_generator(seed, purpose, step)
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(generator.initial_seed())


def _batch(values: Float[Tensor, "T D"], first: int) -> ActivationBatch:
    """Return samples, numbered from `first`, as a batch: no tokens, nothing special, no sinks."""
    unknown = torch.full((len(values),), -1, device=values.device)
    nothing = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    return ActivationBatch(
        activations={SITE: values},
        tokens=unknown,
        positions=unknown,
        documents=unknown,
        rows=torch.arange(first, first + len(values), device=values.device),
        special=nothing,
        sinks={SITE: nothing},
    )
