"""Batches of a stream, and where in the text their tokens stand."""

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.stream import ActivationStream


def take(stream: ActivationStream, count: int) -> list[ActivationBatch]:
    """Return the next batches."""
    batches = iter(stream)
    return [next(batches) for _ in range(count)]


def places(batches: list[ActivationBatch]) -> list[tuple[int, int]]:
    """Return row and position of every token, in the order served."""
    return [pair for b in batches for pair in zip(b.rows.tolist(), b.positions.tolist(), strict=True)]
