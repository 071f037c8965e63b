"""BatchTopK: the batch keeps its T * k largest latents, so that hard tokens get more of them than easy ones.

Axes:    T tokens, D width, F latents, N kept latents.
Source:  Bussmann et al. 2024, arXiv:2412.06410.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.sae.mechanisms.base import Encoding
from lightsae.sae.mechanisms.topk import TopK
from lightsae.sae.ranks import among_largest, over_all, over_batch, over_shards, ranks_of_batch, shards
from lightsae.sae.sparse_ops import Latents, SparsePattern, encode_selected

DECAY = 0.9
# Entries below this share of the threshold are left out of the selection, where enough others remain.
NEAR = 0.5


class BatchTopK(TopK):
    """The batch keeps its T * k largest latents; at inference those above a threshold. Loss terms as TopK's.

    With several devices the batch is that of all of them.

    The threshold is the running mean, over optimiser steps, of the smallest positive latent that a batch kept (the
    paper takes the plain mean; but the last ten steps or so say more about the SAE as it ends). It is stored
    with the weights. At inference a token's latents do not depend on which other tokens are in the batch. With a second
    step each of the two has a threshold of its own, since they see different inputs.
    """

    two_modes = True
    threshold: Tensor
    first_threshold: Tensor

    def extra_repr(self) -> str:
        now = "the largest of the batch, k a token" if self.training else "what is not below the threshold"
        threshold = "none yet" if self.threshold.is_meta else f"{float(self.threshold):.4g}"
        return f"k={self.k}, threshold={threshold}; now: {now}"

    def build(self, d_sae: int) -> None:
        self.register_buffer("threshold", torch.zeros(()))
        self._smallest: dict[str, list[Tensor]] = {"threshold": []}
        if self.passes > 1:
            self.register_buffer("first_threshold", torch.zeros(()))
            self._smallest["first_threshold"] = []

    def reset_parameters(self) -> None:
        for name in self._smallest:
            self.get_buffer(name).zero_()

    def start_from(self, pre: Float[Tensor, "T F"], b_enc: Float[Tensor, " F"]) -> None:
        values, _ = self._largest(pre, self.k, self.threshold)
        for name in self._smallest:
            self._start_at(name, values)

    def _start_at(self, name: str, values: Tensor) -> None:
        smallest = smallest_positive(values)
        threshold = self.get_buffer(name)
        threshold.copy_(torch.where(smallest.isfinite(), smallest, threshold))

    def start_second_from(self, pre: Float[Tensor, "T F"]) -> None:
        values, _ = self._largest(pre, self.k, self.threshold)
        self._start_at("threshold", values)

    def change_unit(self, factor: Float[Tensor, " _"]) -> None:
        for name in self._smallest:
            self.get_buffer(name).mul_(factor.mean())

    def encode_first(
        self,
        x: Float[Tensor, "T D"],
        centre: Float[Tensor, " D"] | None,
        W_enc: Float[Tensor, "D F"],
        b_enc: Float[Tensor, " F"],
    ) -> Encoding:
        return Encoding(encode_selected(x, centre, W_enc, b_enc, lambda pre: self._select(pre, self.first_threshold)))

    def select(self, pre: Float[Tensor, "T F"]) -> tuple[Float[Tensor, " N"], SparsePattern]:
        """Keep the batch's T * k largest in training, what is above the threshold at inference."""
        return self._select(pre, self.threshold)

    def select_many(self, pre: Float[Tensor, "T F"], k: int) -> tuple[Float[Tensor, " N"], SparsePattern]:
        return self._largest(pre, k, self.threshold)

    def _select(self, pre: Tensor, threshold: Tensor) -> tuple[Tensor, SparsePattern]:
        return self._largest(pre, self.present_k, threshold) if self.training else above(pre, threshold)

    def _largest(
        self, pre: Float[Tensor, "T F"], k: int, threshold: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, " N"], SparsePattern]:
        tokens, width = pre.shape
        flat, wanted = pre.flatten(), tokens * k * ranks_of_batch()
        near = None
        if searches_near(pre):
            # A partial sort of all T * F entries would take longer than the products.
            near = (flat > NEAR * threshold).nonzero().squeeze(1)
            if int(over_shards(over_batch(torch.tensor(len(near)), "sum"), "sum")) < wanted:
                near = None
        candidates = flat if near is None else flat[near]
        if ranks_of_batch() * shards() > 1:
            # How many of them are this rank's own has to be known: this waits for the device.
            chosen = among_largest(candidates, wanted).nonzero().squeeze(1)
        else:
            chosen = candidates.topk(wanted, sorted=False).indices
        chosen = (chosen if near is None else near[chosen]).sort().values
        starts = torch.arange(tokens + 1, device=pre.device) * width
        pattern = SparsePattern(chosen % width, torch.searchsorted(chosen, starts), width)
        return flat[chosen].relu(), pattern

    def observe(self, latents: Latents) -> None:
        self._note("threshold", latents)

    def observe_first(self, latents: Latents) -> None:
        self._note("first_threshold", latents)

    def _note(self, name: str, latents: Latents) -> None:
        assert not isinstance(latents, Tensor)
        self._smallest[name].append(smallest_positive(latents.values.detach()))

    @torch.no_grad()
    def commit(self) -> None:
        for name, noted in self._smallest.items():
            smallest, threshold = over_all(torch.stack(noted), "min"), self.get_buffer(name)
            noted.clear()
            # A batch on which nothing fires says nothing.
            smallest = torch.where(smallest.isfinite(), smallest, threshold.to(smallest.dtype)).mean()
            threshold.lerp_(smallest.to(threshold.dtype), 1 - DECAY)

    def upgrade(self, tensors: dict[str, Tensor], prefix: str) -> None:
        # One threshold served both steps once; with it twice, the SAE is the one that was saved.
        if self.passes > 1 and f"{prefix}threshold" in tensors:
            tensors.setdefault(f"{prefix}first_threshold", tensors[f"{prefix}threshold"].clone())


def searches_near(pre: Float[Tensor, "T F"]) -> bool:
    """Return whether to look for the largest among those near them alone, for which a host would wait for a device."""
    return pre.is_cpu


def above(pre: Float[Tensor, "T F"], threshold: Float[Tensor, ""]) -> tuple[Float[Tensor, " N"], SparsePattern]:
    """Keep what is positive and not below the threshold. Waits for the device: how many there are has to be known."""
    fires = (pre >= threshold) & (pre > 0)
    tokens, indices = fires.nonzero(as_tuple=True)
    offsets = torch.searchsorted(tokens, torch.arange(len(pre) + 1, device=pre.device))
    return pre[tokens, indices], SparsePattern(indices, offsets, pre.shape[1])


def smallest_positive(values: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Return the smallest value above 0, or infinity where none is."""
    # Of all ranks' largest none may be this rank's own.
    return torch.cat([torch.where(values > 0, values, torch.inf), values.new_full((1,), torch.inf)]).min()
