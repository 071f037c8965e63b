"""Random draws that depend on what they are for, never on what was drawn before."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray


def keyed_generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """Return a CPU generator that is the same wherever (seed, purpose, step) is the same.

    Drawing from it moves no other generator, and a resumed run draws what the uninterrupted one would have drawn.

    >>> torch.randperm(4, generator=keyed_generator(0, "rows of a block", 7)).tolist()
    [3, 1, 2, 0]
    >>> torch.randperm(4, generator=keyed_generator(0, "rows of a block", 7)).tolist()
    [3, 1, 2, 0]
    """
    return torch.Generator().manual_seed(derived_seed(seed, purpose, step))


def derived_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Return a seed for draws of their own: unlike `seed + 1`, it is no other run's seed.

    >>> derived_seed(0, "doses that are reported") != derived_seed(1, "doses that are chosen")
    True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class ShuffledEpochs:
    """The numbers 0..count-1, shuffled anew in each epoch, one epoch after another: the parts of a stored data set.

    What stands at a place follows from the seed, the count and the place alone. The order of one epoch is in memory, 4
    bytes per number.

    Args:
        count: How many numbers.
        seed: Of all epochs.

    Example:
        >>> epochs = ShuffledEpochs(4, seed=0)
        >>> sorted(epochs.places(0, 4).tolist()), sorted(epochs.places(4, 4).tolist())
        ([0, 1, 2, 3], [0, 1, 2, 3])
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, np.empty(0, np.int32)

    def places(self, first: int, count: int) -> NDArray[np.int32]:
        """Return what stands at `count` places from `first` on, over the ends of epochs."""
        parts, last = [], first + count
        while first < last:
            epoch, within = divmod(first, self.count)
            parts.append(self._order_of(epoch)[within : within + last - first])
            first += len(parts[-1])
        return np.concatenate(parts)

    def _order_of(self, epoch: int) -> NDArray[np.int32]:
        if self._epoch != epoch:
            generator = keyed_generator(self.seed, "chunks of an epoch", epoch)
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator).numpy().astype(np.int32)
        return self._order
