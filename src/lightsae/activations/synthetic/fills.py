"""Fills and held-out batches of a synthetic world: drawn by number, so that nothing has to be stored to go on.

Axes: T tokens, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.stream import Fill, FillSource, HeldOut, Process, StreamPlan, slot
from lightsae.activations.synthetic.world import SyntheticWorld
from lightsae.activations.timings import Timings
from lightsae.randomness import keyed_generator
from lightsae.sae.sites import SiteRef

SITE = SiteRef("", "synthetic")
# Tokens drawn at once; the numbers that are drawn depend on it.
_TOKENS_AT_ONCE = 1 << 14


class SyntheticFills(FillSource):
    """Fills the buffer with activations, drawn by a generator that is keyed by the fill's number."""

    def __init__(self, world: SyntheticWorld, plan: StreamPlan, buffer: Float[Tensor, "T D"], timings: Timings) -> None:
        self.world, self.plan, self.timings = world, plan, timings
        self._buffers = [buffer]

    def fill(self, number: int) -> Fill:
        buffer = slot(self._buffers, number, self.slots)
        tokens, device = len(buffer), buffer.device
        with self.timings.measure("text", device):
            generator = _generator(self.plan.seed, f"synthetic, rank {self.plan.rank}", number, device)
            for start in range(0, tokens, _TOKENS_AT_ONCE):
                part = buffer[start : start + _TOKENS_AT_ONCE]
                part.copy_(self.world.activations(self.world.sample(len(part), generator), generator))
        served = torch.arange(tokens, device=device)
        first = (number * self.plan.world + self.plan.rank) * tokens
        return Fill(ActivationBatch.without_text(SITE, buffer, first + served), served)


def held_out_samples(world: SyntheticWorld, tokens: int, batch_tokens: int, seed: int, process: Process) -> HeldOut:
    """Return held-out samples with their truth; as many for each rank, in whole batches."""
    size = max(1, min(batch_tokens, tokens // process.world))
    batches = max(1, tokens // (size * process.world))

    def draw(number: int) -> ActivationBatch:
        generator = _generator(seed, "synthetic, validation", number, process.device)
        truth = world.sample(size, generator)
        values = world.activations(truth, generator).to(process.dtype)
        rows = number * size + torch.arange(size, device=process.device)
        return ActivationBatch.without_text(SITE, values, rows, truth)

    return HeldOut(draw, range(process.rank, batches * process.world, process.world))


def _generator(seed: int, purpose: str, step: int, device: torch.device) -> torch.Generator:
    """Return a keyed generator that draws on the device."""
    generator = keyed_generator(seed, purpose, step)
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(generator.initial_seed())
