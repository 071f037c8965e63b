"""Products of a sparse pattern with dense rows, without a copy of the rows in between.

Axes: T tokens, F latents, D width, N entries; B bags of entries, R rows of a table.

`weighted_rows` gathers and sums: decoding by token, gradients by latent. PyTorch's `embedding_bag` does the same; here
a bag is spread over programs by its columns, so that one latent that fires on every token does not hold up a whole
block of threads. `row_products` is the gradient of the latents' values. PyTorch gathers both sides into memory first;
here a row is read once and multiplied at once.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

# Columns that a program takes at a time, at most: it sums rows over all of its entries, or products of one entry.
_SUMMED, _MULTIPLIED = 256, 1024


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
        block = min(_SUMMED, triton.next_power_of_2(width))
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


def row_products(
    a: Float[Tensor, "T D"], b: Float[Tensor, "F D"], tokens: Int[Tensor, " N"], latents: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Return <a[tokens[n]], b[latents[n]]> for every entry n, in the dtype of `a`."""
    a, b, width = a.contiguous(), b.contiguous(), a.shape[1]
    out = torch.empty(len(tokens), dtype=a.dtype, device=a.device)
    if len(out):
        block = min(_MULTIPLIED, triton.next_power_of_2(width))
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
