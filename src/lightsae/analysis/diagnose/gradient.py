"""Whether a decoder is at the minimum of its loss on some text: what training has mended, and a wrong reading undoes.

Where the squared error is least, no latent's decoder row wants to be longer or shorter: the sum over tokens of f <d, e>
is 0, with the latent f, its row d and the error e. An L1 penalty on f |d| makes it the same multiple of the sum of
f |d| for all latents, which is taken off. What is left says how far the rows are from where training left them: hardly
anything if the SAE is read as it was trained, far more if other latents fire, or fire as strongly on other tokens.

Axes:    T tokens, D width read, O width predicted, F latents; 2 halves of the tokens.
Units:   raw activations.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightsae.sae import SparseAutoencoder
from lightsae.sae.sparse_ops import SparseLatents

# Neighbours are alike: blocks of so many tokens go to the halves in turn.
_BLOCK = 64


class DecoderGradient:
    """Adds up, over the tokens of two halves of a text, what a factor for each latent would explain.

    The best factor of a latent explains (sum f <d, e>)^2 / sum f^2 |d|^2. The product of both halves' roots has the
    same expectation without the noise, which would add to a square.

    Args:
        sae: In eval mode, with scales of 1.
    """

    def __init__(self, sae: SparseAutoencoder) -> None:
        self._sae = sae
        self._norms = sae.W_dec.detach().norm(dim=1)
        shape = (2, sae.d_sae)
        self._gain, self._square, self._length = (
            torch.zeros(shape, dtype=torch.float64, device=sae.W_dec.device) for _ in range(3)
        )

    @torch.no_grad()
    def add(
        self, x: Float[Tensor, "T D"], latents: SparseLatents, error: Float[Tensor, "T O"], counted: Bool[Tensor, " T"]
    ) -> None:
        """Add tokens: what was read, the latents, and the errors of the predictions, of those that count."""
        units = self._sae.token_units(x)
        units = x.new_ones(len(x), 1) if units is None else units
        along = (error * units) @ self._sae.W_dec.T
        tokens = latents.pattern.token_of
        kept = (latents.values > 0) & counted[tokens]
        tokens, indices, values = tokens[kept], latents.indices[kept].long(), latents.values[kept]
        half = (torch.arange(len(x), device=x.device) // _BLOCK % 2)[tokens]
        lengths = values * self._norms[indices] * units[tokens, 0]
        for table, terms in (
            (self._gain, values * along[tokens, indices]),
            (self._square, lengths.square()),
            (self._length, lengths),
        ):
            table.view(-1).index_add_(0, half * self._sae.d_sae + indices, terms.double())

    def share_of(self, variance: float) -> float:
        """Return what the factors would explain as a share of the sum of squares of what is predicted."""
        known = (self._square > 0).all(0)
        gain, square, length = (table[:, known] for table in (self._gain, self._square, self._length))
        shrinkage = (gain * length / square).sum(1) / (length.square() / square).sum(1).clamp_min(1e-300)
        # A penalty only ever shrinks: rows that are all too long are left so by a wrong reading.
        shrinkage = shrinkage.clamp_min(0)
        left = (gain - shrinkage[:, None] * length) / square.sqrt()
        return max(0.0, float(left.prod(0).sum()) / variance)
