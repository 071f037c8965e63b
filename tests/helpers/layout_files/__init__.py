"""Small files of other libraries' layouts, each with what the SAE in it gives, in plain formulas.

A case is what `Case` of tests/contract/test_layouts.py takes beside the layout's name: a function that writes the files
below a folder and returns the path that a user would give and the function (latents, prediction) of raw activations,
and what has to be known of the source.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

D, F = 6, 16
Function = Callable[[Tensor], tuple[Tensor, Tensor]]
Make = Callable[[Path], tuple[Path, Function]]
Cases = dict[str, tuple[Make, dict[str, object]]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def jump(z: Tensor, threshold: Tensor | float) -> Tensor:
    return torch.where((z > threshold) & (z > 0), z, 0)


def largest(z: Tensor, k: int) -> Tensor:
    """Of each token the k largest, where they are positive."""
    return torch.zeros_like(z).scatter(-1, (top := z.topk(k, dim=-1)).indices, top.values).relu()
