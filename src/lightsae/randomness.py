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
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
