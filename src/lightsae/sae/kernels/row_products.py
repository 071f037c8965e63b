"""One inner product per entry of a sparse pattern: the gradient of the latents' values.

Axes: T tokens, F latents, D width, N entries.

PyTorch gathers both sides into memory first; here a row is read once and multiplied at once.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 1024


def row_products(
    a: Float[Tensor, "T D"], b: Float[Tensor, "F D"], tokens: Int[Tensor, " N"], latents: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Return <a[tokens[n]], b[latents[n]]> for every entry n, in the dtype of `a`."""
    a, b, width = a.contiguous(), b.contiguous(), a.shape[1]
    out = torch.empty(len(tokens), dtype=a.dtype, device=a.device)
    if len(out):
        block = min(BLOCK, triton.next_power_of_2(width))
        _row_products[(len(out),)](a, b, tokens, latents, out, width, BLOCK=block)
    return out


@triton.jit
@no_type_check
def _row_products(a, b, tokens, latents, out, width, BLOCK: tl.constexpr):
    entry = tl.program_id(0).to(tl.int64)
    token, latent = tl.load(tokens + entry).to(tl.int64), tl.load(latents + entry).to(tl.int64)
    products = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        left = tl.load(a + token * width + columns, mask=columns < width, other=0).to(tl.float32)
        right = tl.load(b + latent * width + columns, mask=columns < width, other=0).to(tl.float32)
        products += left * right
    tl.store(out + entry, tl.sum(products, 0))
