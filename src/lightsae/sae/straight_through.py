"""Steps with a gradient: straight-through estimates for thresholds, through a rectangle kernel.

Axes:    T tokens, F latents.
Source:  Rajamanoharan et al. 2024, arXiv:2407.14435, sec. 3. With the kernel K, 1 within half a unit of 0 and else 0:
         d JumpReLU(z) / d theta = -(theta / width) K((z - theta) / width),
         d H(z - theta) / d theta = -(1 / width) K((z - theta) / width).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.sae import kernels


def jump_relu(pre: Float[Tensor, "T F"], threshold: Float[Tensor, " F"], bandwidth: float) -> Float[Tensor, "T F"]:
    """Return z where z > theta, else 0. The gradient passes to `pre` where it is kept, to `threshold` near it."""
    out: Tensor = _JumpReLU.apply(pre, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return out


def mean_count(pre: Float[Tensor, "T F"], threshold: Float[Tensor, " F"], bandwidth: float) -> Float[Tensor, ""]:
    """Return how many of a token's pre-activations lie above their thresholds, on average; a gradient to those only."""
    out: Tensor = _MeanCount.apply(pre, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return out


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        if kernels.used_for(pre, threshold):
            from lightsae.sae.kernels import jump_relu as kernel

            return kernel.forward(pre, threshold)
        return torch.where(pre > threshold, pre, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        pre, threshold = ctx.saved_tensors
        grad_pre = grad_threshold = None
        if kernels.used_for(pre, threshold, grads[0]):
            from lightsae.sae.kernels import jump_relu as kernel

            grad_pre, near_grads = kernel.backward(pre, threshold, grads[0], ctx.bandwidth)
            return grad_pre, -(threshold / ctx.bandwidth) * near_grads, None
        if ctx.needs_input_grad[0]:
            grad_pre = torch.where(pre > threshold, grads[0], 0)
        if ctx.needs_input_grad[1]:
            near = torch.where(_is_near(pre, threshold, ctx.bandwidth), grads[0], 0)
            grad_threshold = -(threshold / ctx.bandwidth) * near.sum(0, dtype=threshold.dtype)
        return grad_pre, grad_threshold, None


class _MeanCount(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        if kernels.used_for(pre, threshold):
            from lightsae.sae.kernels import jump_relu as kernel

            return kernel.counts(pre, threshold, None).sum() / len(pre)
        return (pre > threshold).sum(dtype=threshold.dtype) / len(pre)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, None]:
        pre, threshold = ctx.saved_tensors
        if kernels.used_for(pre, threshold):
            from lightsae.sae.kernels import jump_relu as kernel

            near = kernel.counts(pre, threshold, ctx.bandwidth)
        else:
            near = _is_near(pre, threshold, ctx.bandwidth).sum(0, dtype=threshold.dtype)
        return None, -grads[0] * near / (ctx.bandwidth * len(pre)), None


def _is_near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return (pre - threshold).abs() <= bandwidth / 2
