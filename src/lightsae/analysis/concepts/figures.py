"""What the figures of concepts are, and how they follow from counts by document.

Axes: B draws of the documents of the tests (the first is the text itself), N such documents, C concepts, F latents.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.concepts.characters import FIRST_LETTER
from lightsae.analysis.concepts.detection import Detection, f1
from lightsae.analysis.concepts.hierarchy import Absorption, Sets, union

Values = NDArray[np.float64]
# A concept, or a latent, counts as found if F1 closes half of the way from always firing to 1.
FOUND = 0.5
# Latents whose draws are in memory at once.
_LATENTS = 1024

WORDS: dict[str, str] = {
    "concept_f1": "mean over concepts of F1 of the latent that detects each best",
    "concept_f1_of_sets": "mean over concepts of F1 of the union of the latents that each takes",
    "concepts_found": "share of the concepts whose best latent's F1 lies halfway or more from always firing to 1",
    "latents_per_concept": "latents that a concept takes: each raises F1 of the union by 0.03 or more (splitting)",
    "latent_f1": "mean over latents that fire of F1 on the concept that each detects best",
    "latents_with_concept": "share of the latents that fire whose F1 lies halfway or more from always firing to 1",
    "absorption": "of a child concept's tokens at which its latent fires, share where none of the parent's own does, "
    "mean over pairs",
    "absorption_elsewhere": "of the parents' other tokens, share where none of their own latents fires",
    "first_letter_absorption": "absorption over the pairs of a first letter and a word with it",
}
# Latents that a probe sees.
KS = (1, 2, 5, 16)
_PROBE = "of a logistic regression that tells a concept from as many other tokens"
PROBES: dict[str, str] = {
    **{f"probe_auc_k{k}": f"AUC {_PROBE}, by {k} latents, mean over concepts" for k in KS},
    "probe_auc_full": f"AUC {_PROBE}, by the whole activation: what there is to find",
    **{f"probe_accuracy_k{k}": f"balanced accuracy of the probe by {k} latents" for k in KS},
    "probe_accuracy_full": "balanced accuracy of the probe by the whole activation",
}
BETTER: Mapping[str, Literal["higher", "lower"]] = {
    **dict.fromkeys(
        ("concept_f1", "concept_f1_of_sets", "concepts_found", "latent_f1", "latents_with_concept"), "higher"
    ),
    **{name: "higher" for name in PROBES if not name.endswith("full")},
    **dict.fromkeys(("latents_per_concept", "absorption", "first_letter_absorption"), "lower"),
}


def concept_figures(
    detection: Detection, sets: Sets, absorbed: Absorption, times: NDArray[np.float64]
) -> dict[str, Values]:
    """Return the figures for every draw.

    Args:
        detection: Of the latents.
        sets: The latents of each concept.
        absorbed: Tokens of the pairs.
        times: (B, N) how often each document of the tests is in each draw.
    """
    scores = concept_scores(detection, times)
    of_sets = set_scores(detection, sets, times)
    figures = {
        "concept_f1": _mean(scores),
        "concept_f1_of_sets": _mean(of_sets),
        "concepts_found": _mean(is_found(scores, detection.task.always)),
    }
    taken = np.array([len(latents) for latents in sets.latents])[sets.chosen > 0]
    # Chosen on other documents: those of the tests, drawn anew, say nothing of its noise.
    figures["latents_per_concept"] = np.where(np.arange(len(times)) == 0, taken.mean() if len(taken) else 0, np.nan)
    figures |= _latent_figures(detection, times)
    names = detection.task.names
    letters = np.array([names[parent].split(".")[0] == FIRST_LETTER for parent in absorbed.pairs[:, 0]], np.bool_)
    shares = _share(times @ absorbed.silent, times @ absorbed.of_child)
    elsewhere = _share(times @ absorbed.silent_elsewhere, times @ absorbed.elsewhere)
    if len(letters):
        figures["absorption"], figures["absorption_elsewhere"] = _mean(shares), _mean(elsewhere)
    if letters.any():
        figures["first_letter_absorption"] = _mean(shares[:, letters])
    return figures


def concept_scores(detection: Detection, times: NDArray[np.float64]) -> Values:
    """Return F1 of each concept's best latent for every draw, (B, C)."""
    latents = [[int(latent)] for latent in detection.latent_of]
    return _scores_of(detection, latents, times)


def set_scores(detection: Detection, sets: Sets, times: NDArray[np.float64]) -> Values:
    """Return F1 of the union of each concept's latents for every draw, (B, C)."""
    return _scores_of(detection, sets.latents, times)


def _scores_of(detection: Detection, latents: list[list[int]], times: NDArray[np.float64]) -> Values:
    task = detection.task
    right, picked = (np.zeros((len(task.test_documents), len(latents))) for _ in range(2))
    for concept, some in enumerate(latents):
        at = union(detection, concept, some, task.testing)
        for table, tokens in ((picked, np.flatnonzero(at)), (right, task.tokens_of(concept, at))):
            table[:, concept] = np.bincount(task.document_of[tokens], minlength=len(table))
    positives = times @ task.positives
    return _where_there(f1(times @ right, times @ picked, positives), positives)


def is_found(scores: Values, always: Values) -> Values:
    """Return 1 where F1 lies halfway or more from that of always firing to 1, 0 where not; NaN where there is none."""
    return np.where(np.isfinite(scores), (scores >= always + FOUND * (1 - always)).astype(np.float64), np.nan)


def latent_scores(detection: Detection, times: NDArray[np.float64], latents: NDArray[np.int64]) -> Values:
    """Return F1 of some latents on the concept that each detects best, for every draw, (B, n)."""
    task, concept_of = detection.task, detection.concept_of
    right, picked = (np.zeros((len(task.test_documents), len(latents))) for _ in range(2))
    for place, latent in enumerate(latents.tolist()):
        concept = int(concept_of[latent])
        tokens = detection.firing_tokens(latent, int(detection.chosen_level[latent, concept]))
        tokens = tokens[task.testing[tokens]]
        of = task.document_of[tokens]
        picked[:, place] = np.bincount(of, minlength=len(picked))
        holds = task.truth.at(tokens, np.full(len(tokens), task.concepts[concept]))
        right[:, place] = np.bincount(of, weights=holds, minlength=len(right))
    positives = (times @ task.positives)[:, concept_of[latents]]
    return _where_there(f1(times @ right, times @ picked, positives), positives)


def _where_there(scores: Values, positives: Values) -> Values:
    """Leave out draws that have none of a concept's documents: nothing can be found there, and nothing missed."""
    return np.where(positives > 0, scores, np.nan)


def _latent_figures(detection: Detection, times: NDArray[np.float64]) -> dict[str, Values]:
    alive = np.flatnonzero(detection.alive)
    if not len(alive):
        return {}
    total, found, there = (np.zeros(len(times)) for _ in range(3))
    for start in range(0, len(alive), _LATENTS):
        some = alive[start : start + _LATENTS]
        scores = latent_scores(detection, times, some)
        there += np.isfinite(scores).sum(1)
        total += np.nansum(scores, 1)
        found += np.nansum(is_found(scores, detection.task.always[detection.concept_of[some]]), 1)
    return {"latent_f1": _share(total, there), "latents_with_concept": _share(found, there)}


def _share(part: Values, whole: Values) -> Values:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _mean(values: Values) -> Values:
    """Return the mean over columns, of those that a draw has."""
    there = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: Values = np.where(there, values, 0).sum(1) / there.sum(1)
    return mean
