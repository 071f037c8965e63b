"""BatchTopK: the batch keeps its T * k largest latents, so that hard tokens get more of them than easy ones.

Axes:    T tokens, D width, F latents, N kept latents.
Source:  Bussmann et al. 2024, arXiv:2412.06410.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.sae.mechanisms.base import Encoding
from lightsae.sae.mechanisms.topk import TopK
from lightsae.sae.sparse_ops import Latents, SparsePattern, encode_selected
from lightsae.sae.usage import over_ranks

DECAY = 0.9
# Entries below this share of the threshold are left out of the selection, where enough others remain.
NEAR = 0.5


class BatchTopK(TopK):
    """The batch keeps its T * k largest latents; at inference those above a threshold. Loss terms as TopK's.

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
            self.get_buffer(name).copy_(smallest_positive(values, self.threshold))

    def start_second_from(self, pre: Float[Tensor, "T F"]) -> None:
        values, _ = self._largest(pre, self.k, self.threshold)
        self.threshold.copy_(smallest_positive(values, self.threshold))

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
        flat = pre.flatten()
        if searches_near(pre) and len(near := (flat > NEAR * threshold).nonzero().squeeze(1)) >= tokens * k:
            # A partial sort of all T * F entries would take longer than the products.
            chosen = near[flat[near].topk(tokens * k, sorted=False).indices]
        else:
            chosen = flat.topk(tokens * k, sorted=False).indices
        chosen = chosen.sort().values
        starts = torch.arange(tokens + 1, device=pre.device) * width
        pattern = SparsePattern(chosen % width, torch.searchsorted(chosen, starts), width)
        return flat[chosen].relu(), pattern

    def observe(self, latents: Latents) -> None:
        self._note("threshold", latents)

    def observe_first(self, latents: Latents) -> None:
        self._note("first_threshold", latents)

    def _note(self, name: str, latents: Latents) -> None:
        assert not isinstance(latents, Tensor)
        self._smallest[name].append(smallest_positive(latents.values.detach(), self.get_buffer(name)))

    @torch.no_grad()
    def commit(self) -> None:
        for name, noted in self._smallest.items():
            smallest = over_ranks(torch.stack(noted).mean(), "mean")
            noted.clear()
            threshold = self.get_buffer(name)
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


def smallest_positive(values: Float[Tensor, " N"], otherwise: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the smallest value above 0, or `otherwise` where none is."""
    smallest = torch.where(values > 0, values, torch.inf).min()
    return torch.where(smallest.isfinite(), smallest, otherwise.to(values.dtype))
