"""An SAE of the same shape that learned nothing: what a figure is worth has to lie above its own.

Axes: T tokens, D width read, O width predicted, F latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.sae import SparseAutoencoder, TopK, Transcoder, Widths, mechanisms

# Tokens that are encoded at once.
_TOKENS = 4096


@dataclass(frozen=True)
class Sample:
    """Some rows from all over the text, without sinks.

    Attributes:
        read: (T, D) what is read, raw.
        predicted: (T, O) what is predicted.
    """

    read: Tensor
    predicted: Tensor

    @classmethod
    def of(cls, widths: Widths, batches: Iterator[ActivationBatch]) -> "Sample":
        """Gather what an SAE of some sites reads and predicts."""
        parts = []
        for batch in batches:
            kept = ~batch.sinks_at((*widths.read, *widths.predicted))
            parts.append(
                tuple(Widths.join(batch.activations, side)[kept].float() for side in (widths.read, widths.predicted))
            )
        read, predicted = (torch.cat(side) for side in zip(*parts, strict=True))
        return cls(read, predicted)

    @cached_property
    def centre(self) -> Float[Tensor, " O"]:
        """The mean of what is predicted."""
        return self.predicted.mean(0)

    @torch.no_grad()
    def l0(self, sae: SparseAutoencoder) -> float:
        """Return how many latents fire on a token of the sample, on average."""
        fired = sum(int((sae.encode_sparse(part).values > 0).sum()) for part in self.read.split(_TOKENS))
        return fired / len(self.read)

    def random_sae(self, sae: SparseAutoencoder, seed: int) -> SparseAutoencoder:
        """Return an SAE with the shape and the L0 of another, which knows of the sample what costs nothing to learn."""
        return random_sae(sae.widths, sae.d_sae, self.l0(sae), self.read, self.predicted, seed)


@torch.no_grad()
def random_sae(
    widths: Widths,
    d_sae: int,
    l0: float,
    read: Float[Tensor, "T D"],
    predicted: Float[Tensor, "T O"],
    seed: int = 0,
) -> SparseAutoencoder:
    """Return a TopK SAE with random directions, as many latents per token, and the best gain that one number can give.

    It is given what costs nothing to learn: the mean of the data, and for its latents the one factor with which the
    error on the sample is least. Encoder and decoder are tied where it predicts what it reads.

    Args:
        widths: Sites, as the SAE has them.
        d_sae: As many latents.
        l0: Latents per token, rounded.
        read: A sample of what is read, raw, without sinks.
        predicted: What is predicted on the same tokens.
        seed: Of the directions.
    """
    k = min(d_sae, max(1, round(l0)))
    another = widths.read != widths.predicted
    sae: SparseAutoencoder = Transcoder(widths, d_sae, mechanisms.TopK(k)) if another else TopK(widths, d_sae, k=k)
    sae.reset_parameters(torch.Generator().manual_seed(seed))
    sae = sae.to(read).eval()
    if another:
        sae.get_buffer("input_centre").copy_(read.mean(0))
    sae.b_dec.copy_(predicted.mean(0))
    wrote = sae(read).x_hat - sae.b_dec
    gain = ((predicted - sae.b_dec) * wrote).sum() / wrote.square().sum().clamp_min(torch.finfo(read.dtype).tiny)
    sae.W_dec.mul_(gain)
    return sae
