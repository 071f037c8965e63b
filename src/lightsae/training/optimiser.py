"""How Adam steps: gradients of one norm, and the learning rate where the user gives none."""

from collections.abc import Iterable

import torch
from torch import nn


@torch.no_grad()
def normalise_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Scale the gradients in place so that their norm over all parameters is 1; gradients of 0 stay.

    Adam divides by the root mean square of its last thousand gradients. Those of the first steps are many times as
    large as later ones, and would make the steps small until they are forgotten.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    for grad in grads:
        grad.div_(norm.clamp_min(torch.finfo(norm.dtype).tiny))
