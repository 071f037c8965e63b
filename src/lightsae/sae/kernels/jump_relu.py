"""JumpReLU forward and backward, and the counts of its penalty, each in one pass over the pre-activations.

Axes: T tokens, F latents, C chunks of tokens.

Formulas: see `straight_through`. Sums over tokens are taken by chunk, and then over the chunks: no atomics.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

ROWS, COLUMNS, TILES = 16, 128, 16


def forward(pre: Float[Tensor, "T F"], threshold: Float[Tensor, " F"]) -> Float[Tensor, "T F"]:
    """Return z where z > theta, else 0."""
    pre = pre.contiguous()
    out = torch.empty_like(pre)
    if pre.numel():
        _forward[_grid(pre, 1)](pre, threshold, out, *pre.shape, ROWS=ROWS, COLUMNS=COLUMNS)
    return out


def backward(
    pre: Float[Tensor, "T F"], threshold: Float[Tensor, " F"], grad: Float[Tensor, "T F"], bandwidth: float
) -> tuple[Float[Tensor, "T F"], Float[Tensor, " F"]]:
    """Return the gradient of `pre`, and the sum over tokens of `grad` where z is within half a bandwidth of theta."""
    pre, grad = pre.contiguous(), grad.contiguous()
    grad_pre, grid = torch.empty_like(grad), _grid(pre, TILES)
    near = torch.zeros(grid[0], pre.shape[1], dtype=torch.float32, device=pre.device)
    if pre.numel():
        _backward[grid](
            pre, threshold, grad, grad_pre, near, *pre.shape, bandwidth / 2, ROWS=ROWS, COLUMNS=COLUMNS, TILES=TILES
        )
    return grad_pre, near.sum(0)


def counts(pre: Float[Tensor, "T F"], threshold: Float[Tensor, " F"], bandwidth: float | None) -> Float[Tensor, " F"]:
    """Return on how many tokens z is above theta or, with a bandwidth, within half of it."""
    pre, grid = pre.contiguous(), _grid(pre, TILES)
    found = torch.zeros(grid[0], pre.shape[1], dtype=torch.float32, device=pre.device)
    if pre.numel():
        _counts[grid](
            pre, threshold, found, *pre.shape, (bandwidth or 0) / 2,
            NEAR=bandwidth is not None, ROWS=ROWS, COLUMNS=COLUMNS, TILES=TILES,
        )  # fmt: skip
    return found.sum(0)


def _grid(pre: Tensor, tiles: int) -> tuple[int, int]:
    return triton.cdiv(pre.shape[0], ROWS * tiles), triton.cdiv(pre.shape[1], COLUMNS)


@triton.jit
@no_type_check
def _forward(pre, threshold, out, tokens, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    places = rows.to(tl.int64)[:, None] * width + columns[None, :]
    z = tl.load(pre + places, mask=inside, other=0)
    theta = tl.load(threshold + columns, mask=columns < width, other=0).to(tl.float32)
    tl.store(out + places, tl.where(z.to(tl.float32) > theta[None, :], z, 0), mask=inside)


@triton.jit
@no_type_check
def _backward(
    pre, threshold, grad, grad_pre, near, tokens, width, half,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    theta = tl.load(threshold + columns, mask=columns < width, other=0).to(tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for tile in range(TILES):
        rows = (tl.program_id(0) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows < tokens)[:, None] & (columns < width)[None, :]
        places = rows.to(tl.int64)[:, None] * width + columns[None, :]
        z = tl.load(pre + places, mask=inside, other=0).to(tl.float32)
        upstream = tl.load(grad + places, mask=inside, other=0)
        tl.store(grad_pre + places, tl.where(z > theta[None, :], upstream, 0), mask=inside)
        is_near = inside & (tl.abs(z - theta[None, :]) <= half)
        total += tl.sum(tl.where(is_near, upstream.to(tl.float32), 0), 0)
    tl.store(near + tl.program_id(0).to(tl.int64) * width + columns, total, mask=columns < width)


@triton.jit
@no_type_check
def _counts(
    pre, threshold, found, tokens, width, half,
    NEAR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    theta = tl.load(threshold + columns, mask=columns < width, other=0).to(tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for tile in range(TILES):
        rows = (tl.program_id(0) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows < tokens)[:, None] & (columns < width)[None, :]
        z = tl.load(pre + rows.to(tl.int64)[:, None] * width + columns[None, :], mask=inside, other=0).to(tl.float32)
        if NEAR:
            counted = tl.abs(z - theta[None, :]) <= half
        else:
            counted = z > theta[None, :]
        total += tl.sum((inside & counted).to(tl.float32), 0)
    tl.store(found + tl.program_id(0).to(tl.int64) * width + columns, total, mask=columns < width)
