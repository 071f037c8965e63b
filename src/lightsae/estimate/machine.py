"""How fast a device is: measured by a product of matrices, or said by the user for another machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

# Of square matrices, half of it on a CPU; and how often they are multiplied.
_SIDE, _ROUNDS = 2048, 5


@dataclass(frozen=True)
class Machine:
    """A device that is not at hand.

    Attributes:
        flops: FLOPs per second that it reaches in products of large matrices, in the dtype of the run.
        bandwidth: Bytes per second to and from its memory.
    """

    flops: float
    bandwidth: float


def measured_flops(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the FLOPs per second of a product of two square matrices; the median of some."""
    side = _SIDE if device.type != "cpu" else _SIDE // 2
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    taken = []
    for _ in range(_ROUNDS + 1):
        began = clock()
        a @ b
        wait_for(device)
        taken.append(clock() - began)
    return 2 * side**3 / median(taken[1:])


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
