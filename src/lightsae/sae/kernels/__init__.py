"""Triton kernels for what PyTorch does on a GPU in several passes; the plain PyTorch form stays and is the reference.

A kernel is used for a CUDA tensor, in a dtype that its tests cover, where Triton is installed (`pip install
lightsae[gpu]`) and `LIGHTSAE_KERNELS=1` is set: until a card has run `benchmarks/gpu.py`, nobody gets them unasked.
None adds atomically: sums are taken in an order that follows from the data alone, so that a resumed run ends in the
same bits. Sums are in float32.
"""

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

VARIABLE = "LIGHTSAE_KERNELS"
DTYPES = (torch.float32, torch.bfloat16)


def used_for(*tensors: Tensor) -> bool:
    """Return whether kernels take tensors: CUDA, float32 or bfloat16, Triton installed, and asked for."""
    on_device = all(tensor.is_cuda and tensor.dtype in DTYPES for tensor in tensors)
    return on_device and os.environ.get(VARIABLE) == "1" and has_triton()


@cache
def has_triton() -> bool:
    """Return whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None
