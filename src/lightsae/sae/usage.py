"""How often each latent of an SAE in training fires, and which are dead.

Axes: F latents. Windows are counted in tokens, never in steps.

Lives beside the SAE, not in it: an export does not carry it, a checkpoint does.
"""

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lightsae.sae.ranks import over_ranks
from lightsae.sae.sparse_ops import Latents


class LatentUsage(nn.Module):
    """Counts, for each latent, the tokens since it last fired.

    `observe` collects the batches of one optimiser step, `commit` ends the step; nothing else changes the counts, so
    that neither validation nor logging can. The list of dead latents that the host sees is a few steps old: reading it
    at once would make the host wait for the device in every step.

    Args:
        d_sae: Number of latents.
        dead_after: A latent is dead after this many tokens without firing.
    """

    REFRESH_STEPS = 16

    def __init__(self, d_sae: int, dead_after: int) -> None:
        super().__init__()
        self.dead_after = dead_after
        self.silent_tokens: Tensor
        self.fired: Tensor
        self.pending_tokens: Tensor
        self.pending_dead: Tensor
        self.known_dead: Tensor
        self.register_buffer("silent_tokens", torch.zeros(d_sae, dtype=torch.long))
        self.register_buffer("fired", torch.zeros(d_sae, dtype=torch.bool))
        self.register_buffer("pending_tokens", torch.zeros((), dtype=torch.long))
        self.register_buffer("pending_dead", torch.zeros(d_sae, dtype=torch.bool))
        self.register_buffer("known_dead", torch.zeros(d_sae, dtype=torch.bool))
        self._steps_to_refresh = self.REFRESH_STEPS
        self._on_host: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None
        self._dead_list: Tensor | None = None

    @property
    def dead(self) -> Bool[Tensor, " F"]:
        """Which latents are dead now, on the device."""
        return self.silent_tokens >= self.dead_after

    @property
    def dead_list(self) -> Int[Tensor, " dead"]:
        """The latents dead at the last refresh but one; its length is known without waiting for the device."""
        if self._dead_list is None:
            self._dead_list = _indices(self.known_dead.cpu(), self.known_dead.device)
        return self._dead_list

    @torch.no_grad()
    def observe(self, latents: Latents) -> None:
        """Note what fires on one batch."""
        if isinstance(latents, Tensor):
            self.fired |= (latents > 0).any(0)
            tokens = len(latents)
        else:
            strongest = latents.values.new_zeros(len(self.fired))
            strongest.scatter_reduce_(0, latents.indices.long(), latents.values.detach(), "amax")
            self.fired |= strongest > 0
            tokens = latents.pattern.tokens
        self.pending_tokens += tokens

    @torch.no_grad()
    def commit(self) -> None:
        """End an optimiser step: reduce over ranks, then move the counts on by the step's tokens."""
        over_ranks(self.fired.view(torch.uint8), "max")
        over_ranks(self.pending_tokens, "sum")
        self.silent_tokens.add_(self.pending_tokens).mul_(~self.fired)
        self.fired.zero_()
        self.pending_tokens.zero_()
        self._steps_to_refresh -= 1
        if self._steps_to_refresh == 0:
            self._refresh()

    @torch.no_grad()
    def revive(self, latents: Int[Tensor, " n"]) -> None:
        """Count these latents as alive from now on, as after resampling."""
        for state in (self.silent_tokens, self.pending_dead, self.known_dead):
            state[latents] = 0
        self._on_host = self._dead_list = None

    def _refresh(self) -> None:
        """Make the mask asked for last time the known one, and ask for the present one without waiting for it."""
        self._steps_to_refresh = self.REFRESH_STEPS
        if self._arrived is not None:
            self._arrived.synchronize()  # a matter of form, unless the device is that many steps behind
        previous = self._on_host if self._on_host is not None else self.pending_dead.cpu()
        self.known_dead.copy_(self.pending_dead)
        self._dead_list = _indices(previous, self.known_dead.device)
        self.pending_dead.copy_(self.dead)
        # Arrives long before the next refresh reads it: the copy is queued behind this step only.
        self._on_host = self.pending_dead.to("cpu", non_blocking=True, copy=True)
        if self.pending_dead.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(self.pending_dead.device))

    def get_extra_state(self) -> dict[str, int]:
        return {"steps_to_refresh": self._steps_to_refresh}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self._steps_to_refresh = state["steps_to_refresh"]
        self._on_host = self._dead_list = None


def _indices(mask: Tensor, device: torch.device) -> Tensor:
    indices = torch.from_numpy(np.flatnonzero(mask.numpy()))
    # From pinned memory the copy is queued; from other memory the host may wait until it is made.
    return (indices.pin_memory() if device.type == "cuda" else indices).to(device, non_blocking=True)
