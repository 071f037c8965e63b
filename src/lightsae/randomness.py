"""Random draws that depend on what they are for, never on what was drawn before."""

import hashlib

import torch


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
