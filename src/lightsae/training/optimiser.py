"""How Adam steps: by gradients of one norm."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def normalise_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Scale each parameter's gradient in place to norm 1; a gradient of 0 stays.

    Adam divides by the root mean square of its last thousand gradients. Those of the first steps are many times as
    large as later ones, and would make the steps small until they are forgotten. Each parameter by itself, so that a
    penalty that moves thresholds alone does not change the steps of the weights.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            gradient, norm = parameter.grad, torch.linalg.vector_norm(parameter.grad)
            if isinstance(gradient, DTensor):
                norm = norm.full_tensor()
                gradient = gradient.to_local()
            gradient.div_(norm.clamp_min(torch.finfo(norm.dtype).tiny))
