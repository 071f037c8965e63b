"""Every latent against every concept: F1 at the frequency that a concept has, by a threshold from other documents.

Axes: F latents, C concepts, T tokens, N firings, L levels of a latent's activation.

A latent detects where its activation reaches a threshold. Thresholds are taken from a few quantiles of its activations,
so that each firing falls into one level; firings by latent and level, times concepts by token, are one sparse
product, which costs as many additions as there are firings times concepts at their tokens.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lightsae.analysis.concepts.task import Task
from lightsae.analysis.concepts.truth import Bools, Ints
from lightsae.analysis.reading.firing_lists import FiringLists

LEVELS = 8
# Latents whose counts are in memory at once.
_LATENTS = 512
# Firings whose level is looked up at once.
_FIRINGS = 1 << 20

Scores = NDArray[np.float32]
Counts = NDArray[Any] | np.number[Any] | int


@dataclass(frozen=True)
class Detection:
    """How well each latent detects each concept.

    Attributes:
        task: The concepts.
        firings: Where the latents fire.
        levels: (N,) the level of each firing, 0 the lowest.
        thresholds: (F, L) the least activation of each level; the lowest is that of any firing.
        chosen_level: (F, C) the level from which on a latent detects a concept best, where it is chosen.
        chosen: (F, C) F1 there.
        tested: (F, C) F1 of the same on the other documents.
    """

    task: Task
    firings: FiringLists
    levels: NDArray[np.uint8]
    thresholds: Scores
    chosen_level: NDArray[np.uint8]
    chosen: Scores
    tested: Scores

    @classmethod
    def of(cls, task: Task, firings: FiringLists) -> "Detection":
        """Count.

        Args:
            task: The concepts.
            firings: With values; all of the text of the task.
        """
        thresholds = _thresholds(task, firings)
        levels = _levels(firings, thresholds)
        shape = (len(firings), len(task.names))
        one = cls(
            task,
            firings,
            levels,
            thresholds,
            np.zeros(shape, np.uint8),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.float32),
        )
        for start in range(0, len(firings), _LATENTS):
            one._count(start, min(len(firings), start + _LATENTS))
        return one

    def _count(self, first: int, last: int) -> None:
        """Fill in the scores of some latents."""
        part = slice(int(self.firings.starts[first]), int(self.firings.starts[last]))
        tokens, levels = self.firings.tokens[part], self.levels[part]
        latents = np.repeat(np.arange(last - first), np.diff(self.firings.starts[first : last + 1]))
        right, fired = [], []
        for half in (self.task.choosing, self.task.testing):
            kept = half[tokens]
            cells = latents[kept] * LEVELS + levels[kept]
            ones = np.ones(len(cells), np.int32)
            table = sparse.csr_array((ones, (cells, tokens[kept])), ((last - first) * LEVELS, len(half)))
            together = (table @ self.task.holds).toarray().reshape(last - first, LEVELS, -1)
            alone = np.bincount(cells, minlength=(last - first) * LEVELS).reshape(last - first, LEVELS)
            # At a level counts what fires there or higher.
            right.append(together[:, ::-1].cumsum(1)[:, ::-1])
            fired.append(alone[:, ::-1].cumsum(1)[:, ::-1])
        scores = [
            f1(right[half], fired[half][:, :, None], self.task.counts[half][None, None]).astype(np.float32)
            for half in (0, 1)
        ]
        best = scores[0].argmax(1)
        self.chosen_level[first:last] = best
        self.chosen[first:last] = np.take_along_axis(scores[0], best[:, None], 1)[:, 0]
        self.tested[first:last] = np.take_along_axis(scores[1], best[:, None], 1)[:, 0]

    @cached_property
    def latent_of(self) -> Ints:
        """(C,) the latent that detects each concept best, where it is chosen."""
        return np.asarray(self.chosen.argmax(0))

    @cached_property
    def concept_of(self) -> Ints:
        """(F,) the concept that each latent detects best, where it is chosen."""
        return np.asarray(self.chosen.argmax(1))

    @cached_property
    def alive(self) -> Bools:
        """(F,) latents that fire where they are chosen."""
        return np.isfinite(self.thresholds[:, 1])

    def firing_tokens(self, latent: int, level: int = 0) -> NDArray[np.int32]:
        """Return the tokens on which a latent fires at some level or higher."""
        part = slice(int(self.firings.starts[latent]), int(self.firings.starts[latent + 1]))
        return self.firings.tokens[part][self.levels[part] >= level]


def f1(right: Counts, picked: Counts, positives: Counts) -> NDArray[np.float64]:
    """Return F1 of detections, of which there are `picked`, `right` of them rightly; 0 of nothing.

    >>> f1(np.array([3, 0]), np.array([4, 0]), np.array([5, 0])).round(4).tolist()
    [0.6667, 0.0]
    """
    right, whole = np.asarray(right, np.float64), np.asarray(picked, np.float64) + positives
    return np.asarray(2 * right / np.maximum(whole, 1e-12))


def _thresholds(task: Task, firings: FiringLists) -> Scores:
    """Return the quantiles of each latent's activations on the documents on which it is chosen, (F, L)."""
    assert firings.values is not None
    kept = task.choosing[firings.tokens]
    latents = np.repeat(np.arange(len(firings), dtype=np.int32), firings.fires)[kept]
    values = firings.values[kept]
    values = values[np.lexsort((values, latents))]
    counts = np.bincount(latents, minlength=len(firings))
    starts = np.r_[0, counts.cumsum()[:-1]]
    places = starts[:, None] + counts[:, None] * np.arange(LEVELS) // LEVELS
    found = np.append(values, np.float32(np.inf))[np.minimum(places, len(values))]
    thresholds = np.where(counts[:, None] > 0, found, np.inf).astype(np.float32)
    # Whatever fires is at the lowest level, on other documents too.
    thresholds[:, 0] = 0
    return thresholds


def _levels(firings: FiringLists, thresholds: Scores) -> NDArray[np.uint8]:
    assert firings.values is not None
    latents = np.repeat(np.arange(len(firings), dtype=np.int32), firings.fires)
    levels = np.zeros(len(latents), np.uint8)
    for start in range(0, len(latents), _FIRINGS):
        part = slice(start, start + _FIRINGS)
        levels[part] = (firings.values[part, None] >= thresholds[latents[part]]).sum(1) - 1
    return levels
