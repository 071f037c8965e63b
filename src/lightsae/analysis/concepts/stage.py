"""Concepts as a part of an evaluation: the truth is read once, each SAE is scored on it.

Axes: T tokens of the text, C concepts, F latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.concepts.detection import Detection
from lightsae.analysis.concepts.figures import Values, concept_figures, concept_scores, latent_scores, set_scores
from lightsae.analysis.concepts.hierarchy import Absorption, Sets, absorption, sets_of
from lightsae.analysis.concepts.report import ConceptReport, ConceptScore, PairScore
from lightsae.analysis.concepts.task import Task
from lightsae.analysis.concepts.truth import Bools, Truth
from lightsae.analysis.reading.firing_lists import FiringLists

_DIGITS = 4
# An interval is given if a concept is in more than this share of the draws.
_MOST_DRAWS = 0.95


@dataclass(frozen=True)
class Scored:
    """What is known of one SAE.

    Attributes:
        detection: Every latent against every concept.
        sets: The latents of each concept.
        absorbed: The pairs of parent and child.
    """

    detection: Detection
    sets: Sets
    absorbed: Absorption

    @classmethod
    def of(cls, task: Task, firings: FiringLists) -> "Scored":
        """Score an SAE on the concepts."""
        detection = Detection.of(task, firings)
        sets = sets_of(detection)
        return cls(detection, sets, absorption(detection, sets))

    def figures(self, times: NDArray[np.float64]) -> dict[str, Values]:
        """Return the figures for every draw of the documents of the tests."""
        return concept_figures(self.detection, self.sets, self.absorbed, times)

    @property
    def documents(self) -> int:
        """How many documents are tested on."""
        return len(self.detection.task.test_documents)

    @property
    def tokens(self) -> int:
        """How many tokens the figures come from."""
        return int(self.detection.task.testing.sum())


def task_of(truth: Truth, firings: FiringLists) -> Task | None:
    """Return what can be scored where some SAE's firings are known; None if nothing holds often enough."""
    assert firings.documents is not None
    read: Bools = np.arange(len(firings.counted)) < firings.tokens_read
    return Task.of(truth, firings.documents, firings.counted & read)


def report_of(
    scored: Scored, source: str, times: NDArray[np.float64], intervals: bool, controls: Mapping[str, Scored]
) -> ConceptReport:
    """Return the report of an SAE.

    Args:
        scored: What is known of it.
        source: Where the concepts come from.
        times: As in `concept_figures`.
        intervals: Whether there are documents enough for intervals.
        controls: What is known of SAEs that learned nothing, on the same concepts.
    """
    detection, task = scored.detection, scored.detection.task
    scores, once = concept_scores(detection, times), times[:1]
    # A concept of few documents is missing in many draws: no interval.
    bounded = intervals & (np.isfinite(scores[1:]).mean(0) > _MOST_DRAWS)
    bounds = np.percentile(np.where(bounded, scores[1:], 0), [2.5, 97.5], axis=0) if intervals else scores[:2]
    of_sets = set_scores(detection, scored.sets, once)[0]
    beside = {name: concept_scores(one.detection, once)[0] for name, one in controls.items()}
    concepts = []
    for place, name in enumerate(task.names):
        latent = int(detection.latent_of[place])
        level = int(detection.chosen_level[latent, place])
        concepts.append(
            ConceptScore(
                name=name,
                tokens=int(task.counts[1, place]),
                f1=_short(scores[0, place]),
                low=_short(bounds[0, place]) if bounded[place] else None,
                high=_short(bounds[1, place]) if bounded[place] else None,
                always=_short(task.always[place]),
                latent=latent,
                threshold=_finite(float(detection.thresholds[latent, level])),
                latents=scored.sets.latents[place],
                f1_of_set=_short(of_sets[place]),
                controls={control: _short(values[place]) for control, values in beside.items()},
            )
        )
    alive = np.flatnonzero(detection.alive)
    of_latents = np.zeros(len(detection.alive))
    of_latents[alive] = latent_scores(detection, once, alive)[0]
    return ConceptReport(
        source=source,
        named=len(task.truth),
        tokens=[int(half.sum()) for half in (task.choosing, task.testing)],
        documents=[len(np.unique(task.documents[half])) for half in (task.choosing, task.testing)],
        concepts=concepts,
        pairs=_pairs(scored),
        concept_of=np.where(detection.alive, detection.concept_of, -1).tolist(),
        f1_of=[_short(value) for value in of_latents],
    )


def _pairs(scored: Scored) -> list[PairScore]:
    absorbed, names = scored.absorbed, scored.detection.task.names
    found = []
    for place, (parent, child) in enumerate(absorbed.pairs.tolist()):
        tokens, rest = absorbed.of_child[:, place].sum(), absorbed.elsewhere[:, place].sum()
        if tokens:
            found.append(
                PairScore(
                    parent=names[parent],
                    child=names[child],
                    latent=int(absorbed.latents[place]),
                    tokens=int(tokens),
                    absorbed=_short(absorbed.silent[:, place].sum() / tokens),
                    elsewhere=_short(absorbed.silent_elsewhere[:, place].sum() / rest) if rest else None,
                )
            )
    return found


def _short(value: float) -> float:
    return round(float(value), _DIGITS)


def _finite(value: float) -> float:
    """Return a threshold; of a latent that never fires there is none."""
    return value if np.isfinite(value) else 0.0
