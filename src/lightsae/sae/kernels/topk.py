"""Each row's k largest values, with ReLU: a radix selection, a program per row.

Axes: T tokens, F latents.

The bits of a float, its sign turned round, are in the order of the floats. A histogram of the highest eight bits says
which of them the k-th largest has; one of the next eight, among the values that share those, the next; and so on. One
more pass collects what is larger, and of what is equal the first. PyTorch's `topk` selects in the same way, but gathers
with atomics where a row is spread over blocks, and which of equal values it takes is open: here it is always the first.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 2048
PASSES = {torch.bfloat16: 2, torch.float32: 4}  # of eight bits


def topk_relu(pre: Float[Tensor, "T F"], k: int) -> tuple[Float[Tensor, "T k"], Int[Tensor, "T k"]]:
    """Return each row's k largest values, those that are not positive as 0, and their places, in ascending order."""
    pre, (tokens, width) = pre.contiguous(), pre.shape
    values = torch.empty(tokens, k, dtype=pre.dtype, device=pre.device)
    indices = torch.empty(tokens, k, dtype=torch.long, device=pre.device)
    if values.numel():
        block = min(BLOCK, triton.next_power_of_2(width))
        _topk_relu[(tokens,)](pre, values, indices, width, k, PASSES=PASSES[pre.dtype], BLOCK=block)
    return values, indices


@triton.jit
@no_type_check
def _ordered(values):
    bits = values.to(tl.float32).to(tl.int32, bitcast=True)
    # Of a negative number all bits are turned, of a positive one the sign; taken as unsigned they are then in order.
    return tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)


@triton.jit
@no_type_check
def _topk_relu(pre, values, indices, width, k, PASSES: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    bins = tl.arange(0, 512)  # the upper half takes what does not count
    known = tl.zeros((1,), tl.int64)  # the k-th largest value's bits so far
    left = tl.zeros((1,), tl.int32) + k  # how many of the values that begin with these are to be kept
    for step in tl.static_range(PASSES):
        counts = tl.zeros((512,), tl.int32)
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < width
            key = _ordered(tl.load(pre + row * width + columns, mask=inside, other=0)).to(tl.int64)
            counted = inside & ((key >> (32 - 8 * step)) == known)
            bits = (key >> (24 - 8 * step)) & 255
            counts += tl.histogram(tl.where(counted, bits, 256).to(tl.int32), 512)
        counts = tl.where(bins < 256, counts, 0)
        larger = tl.sum(counts, 0) - tl.cumsum(counts, 0)
        digit = tl.max(tl.where((bins < 256) & (larger + counts >= left), bins, 0), 0)
        left -= tl.sum(tl.where(bins == digit, larger, 0), 0)
        known = known * 256 + digit
    kept_before = tl.zeros((1,), tl.int32)
    ties_before = tl.zeros((1,), tl.int32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        value = tl.load(pre + row * width + columns, mask=inside, other=0)
        key = _ordered(value).to(tl.int64) >> (32 - 8 * PASSES)
        tie = (inside & (key == known)).to(tl.int32)
        keep = inside & ((key > known) | ((tie > 0) & (ties_before + tl.cumsum(tie, 0) <= left)))
        place = row * k + kept_before + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(values + place, tl.where(value.to(tl.float32) > 0, value, 0), mask=keep)
        tl.store(indices + place, columns.to(tl.int64), mask=keep)
        kept_before += tl.sum(keep.to(tl.int32), 0)
        ties_before += tl.sum(tie, 0)
