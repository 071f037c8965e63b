"""Gather and sum: for each bag, the sum of weighted rows of a table. Decoding by token, gradients by latent.

Axes: B bags, N entries of all bags, R rows of the table, D width.

PyTorch's `embedding_bag` does the same; here a bag is spread over programs by its columns, so that one latent that
fires on every token does not hold up a whole block of threads.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 256


def weighted_rows(
    table: Float[Tensor, "R D"],
    rows: Int[Tensor, " N"],
    offsets: Int[Tensor, " B_plus_1"],
    weights: Float[Tensor, " N"],
) -> Float[Tensor, "B D"]:
    """Return, for each bag, the sum of `weights[n] * table[rows[n]]` over its entries, in their order."""
    table, bags, width = table.contiguous(), len(offsets) - 1, table.shape[1]
    out = torch.empty(bags, width, dtype=table.dtype, device=table.device)
    if out.numel():
        block = min(BLOCK, triton.next_power_of_2(width))
        _weighted_rows[(bags, triton.cdiv(width, block))](table, rows, offsets, weights, out, width, BLOCK=block)
    return out


@triton.jit
@no_type_check
def _weighted_rows(table, rows, offsets, weights, out, width, BLOCK: tl.constexpr):
    bag = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros((BLOCK,), tl.float32)
    for entry in range(tl.load(offsets + bag), tl.load(offsets + bag + 1)):
        row = tl.load(rows + entry).to(tl.int64)
        weight = tl.load(weights + entry).to(tl.float32)
        total += weight * tl.load(table + row * width + columns, mask=inside, other=0).to(tl.float32)
    tl.store(out + bag * width + columns, total, mask=inside)
