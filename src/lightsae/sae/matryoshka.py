"""Matryoshka: nested prefixes of the latents each reconstruct the input, so that early latents stay general.

Axes:    T tokens, D width, O width predicted, F latents, P prefixes, N kept latents.
Sources: Bussmann et al. 2025, arXiv:2503.17547. Prefixes by firing frequency, and inner prefixes that the outer losses
         leave alone: a public report of 2026 on SynthSAEBench.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightsae.errors import ConfigError, arg
from lightsae.sae.base import SparseAutoencoder
from lightsae.sae.mechanisms.base import Mechanism
from lightsae.sae.mechanisms.group_max import GroupMax
from lightsae.sae.mechanisms.topk import TopK
from lightsae.sae.output import SAEOutput
from lightsae.sae.ranks import over_ranks
from lightsae.sae.refinements import NO_REFINEMENTS, Refinements
from lightsae.sae.sites import Widths
from lightsae.sae.sparse_ops import SparseLatents, SparsePattern, decode

GROUPS = 5
DECAY = 0.99


@dataclass(frozen=True)
class NestedOutput(SAEOutput):
    """An output with the prediction of every prefix, (T, P, O), in normalised units; the last is the whole one's."""

    prefixes: Float[Tensor, "T P O"] | None = None


class Matryoshka(SparseAutoencoder):
    """Nested SAEs in one (Bussmann et al. 2025), over TopK or BatchTopK. Loss terms as the mechanism's.

    The squared error is the mean over the prefixes (the paper takes the sum: with the mean, the learning rate and the
    weights of the other terms keep their meaning whatever the number of prefixes).

    Args:
        widths: Given by the data.
        d_sae: Number of latents.
        mechanism: `TopK` or `BatchTopK`, with its settings.
        groups: Latents that each prefix adds, adding up to `d_sae`; null: five groups that double.
        order: `index`: a prefix is the first latents. `frequency`: it is those that fire most often at present.
        detach_inner: A prefix's error teaches only the latents that this prefix adds.
        refinements: Options beside the mechanism.
    """

    frequency: Tensor

    def __init__(
        self,
        widths: Widths,
        d_sae: int,
        mechanism: Mechanism,
        groups: list[int] | None = None,
        order: Literal["index", "frequency"] = "index",
        detach_inner: bool = False,
        refinements: Refinements = NO_REFINEMENTS,
    ) -> None:
        # Of a prefix that ends within a group only one latent could fire.
        if not isinstance(mechanism, TopK) or isinstance(mechanism, GroupMax):
            raise ConfigError(f"{arg('mechanism')} is {type(mechanism).__name__}; Matryoshka takes TopK or BatchTopK.")
        self.groups, self.order, self.detach_inner = groups, order, detach_inner
        self._bounds = list(accumulate(_group_sizes(groups, d_sae)))
        super().__init__(widths, d_sae, mechanism, refinements)

    def build(self) -> None:
        self._fired: list[Tensor] = []
        if self.order == "frequency":
            self.register_buffer("frequency", torch.zeros(self.d_sae))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        super().reset_parameters(generator)
        if self.order == "frequency":
            self.frequency.zero_()

    def forward(self, x: Float[Tensor, "T D"]) -> SAEOutput:
        if not self.training:
            return super().forward(x)
        x, frame = self._read(x)
        latents, pre, first = self._encoding(x)
        assert isinstance(latents, SparseLatents)
        parts = self._by_prefix(latents)
        prefixes = parts.cumsum(1) + self.b_dec
        x_hat = prefixes[:, -1]
        if self.detach_inner:
            # The bias belongs to every prefix.
            prefixes = (parts.cumsum(1) - parts).detach() + parts + self.b_dec
        return NestedOutput(x, latents, x_hat, self._output_factor(), pre, first, frame, prefixes)

    def squared_error(self, target: Float[Tensor, "T O"], output: SAEOutput) -> Float[Tensor, ""]:
        if not isinstance(output, NestedOutput):
            return super().squared_error(target, output)
        assert output.prefixes is not None
        return self.refinements.mean((target[:, None] - output.prefixes).square().sum(2).mean(1))

    @property
    def group_sizes(self) -> list[int]:
        """The latents that each prefix adds."""
        return _group_sizes(self.groups, self.d_sae)

    def prefix(self, latents: Float[Tensor, "*batch F"], number: int) -> Float[Tensor, "*batch F"]:
        """Return dense latents with all but those of prefix `number` (from 0) set to 0."""
        return latents * (self._group_of_latents() <= number)

    def observe(self, output: SAEOutput) -> None:
        super().observe(output)
        if self.order == "frequency":
            latents = output.latents
            assert isinstance(latents, SparseLatents)
            # Counts, and last the tokens: whole numbers, whose sum is the same however they are dealt to ranks.
            counts = torch.zeros(self.d_sae + 1, dtype=torch.float32, device=self.frequency.device)
            fired = (latents.values.detach() > 0).to(counts.dtype)
            counts[-1] = latents.pattern.tokens
            self._fired.append(counts.scatter_add_(0, latents.indices, fired))

    @torch.no_grad()
    def commit(self) -> None:
        super().commit()
        if self.order == "frequency":
            counts = over_ranks(torch.stack(self._fired).sum(0), "sum")
            self._fired.clear()
            self.frequency.lerp_((counts[:-1] / counts[-1]).to(self.frequency.dtype), 1 - DECAY)

    def _group_of_latents(self) -> Int[Tensor, " F"]:
        """Return the first prefix that each latent belongs to."""
        place = torch.arange(self.d_sae, device=self.W_dec.device)
        if self.order == "frequency":
            # Stable: latents of equal frequency, all of them at the start, keep their order.
            place = torch.empty_like(place).scatter_(0, self.frequency.argsort(descending=True, stable=True), place)
        # Compared one by one: a tensor of the bounds would have to be copied to the device, which waits for it.
        return torch.stack([place >= bound for bound in self._bounds]).sum(0)

    def _by_prefix(self, latents: SparseLatents) -> Float[Tensor, "T P O"]:
        """Return what each prefix adds to the prediction: one decoding, a bag for each token and prefix."""
        groups, pattern = len(self._bounds), latents.pattern
        bags = pattern.token_of * groups + self._group_of_latents()[latents.indices]
        order = bags.argsort(stable=True)
        starts = torch.arange(pattern.tokens * groups + 1, device=bags.device)
        offsets = torch.searchsorted(bags[order], starts)
        split = SparsePattern(latents.indices[order], offsets, pattern.width)
        return decode(SparseLatents(latents.values[order], split), self.W_dec).view(pattern.tokens, groups, -1)


def _group_sizes(groups: Sequence[int] | None, d_sae: int) -> list[int]:
    """Return the latents that each prefix adds.

    Raises:
        ConfigError: Given groups do not add up to `d_sae`, or one of them is empty.
    """
    if groups is None:
        # 1 : 1 : 2 : 4 : 8, so that each prefix is twice the one before; the last takes what rounding leaves.
        bounds = [max(1, d_sae >> shift) for shift in range(GROUPS - 1, -1, -1)]
        return [b - a for a, b in zip([0, *bounds], bounds, strict=False) if b > a]
    if not groups or min(groups) < 1:
        raise ConfigError("groups", list(groups), "write sizes of 1 or more")
    if sum(groups) != d_sae:
        raise ConfigError(
            f"{arg('groups')} is {list(groups)}, which adds up to {sum(groups)}; it has to be d_sae ({d_sae})."
        )
    return list(groups)
