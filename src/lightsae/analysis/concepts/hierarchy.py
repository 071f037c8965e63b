"""Splitting and absorption, counted where the hierarchy of the concepts is known.

Splitting:   how many latents a concept takes. Beginning with the one that detects it best, the latent is added that
             raises F1 of the union most, as long as it does by 0.03 or more.
Absorption:  a child concept's latent fires at a token of the child, and none of the parent's own latents does,
             though the token is one of the parent's. Own are those of its latents that detect no kind of it better.

Axes:        C concepts, P pairs of parent and child, N documents of the tests.
Source:      Chanin et al. 2024, arXiv:2409.14507, who take the direction of a probe for the truth; the least rise of
             F1 is theirs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.concepts.detection import Detection, f1
from lightsae.analysis.concepts.truth import Bools, Indices, Ints

# What a latent more has to bring, and how many there may be; those that are tried are right this often.
RISE, MOST_LATENTS, _LEAST_PRECISION, _TRIED = 0.03, 10, 0.5, 48
# A pair counts if F1 of either side is at least this where latents are chosen: below, there is nothing to absorb.
LEAST_F1 = 0.5


@dataclass(frozen=True)
class Sets:
    """The latents that each concept takes.

    Attributes:
        latents: (C,) those of each, the best first.
        chosen: (C,) F1 of their union where they are chosen.
    """

    latents: list[list[int]]
    chosen: NDArray[np.float64]


@dataclass(frozen=True)
class Absorption:
    """Tokens of the tests, by document, of the pairs that count.

    Attributes:
        pairs: (P, 2) parent and child.
        latents: (P,) the latent of the child.
        of_child: (N, P) tokens of the child at which its latent fires.
        silent: (N, P) those at which no latent of the parent fires.
        elsewhere: (N, P) tokens of the parent that are none of the child's.
        silent_elsewhere: (N, P) those at which no latent of the parent fires.
    """

    pairs: Ints
    latents: Ints
    of_child: NDArray[np.float64]
    silent: NDArray[np.float64]
    elsewhere: NDArray[np.float64]
    silent_elsewhere: NDArray[np.float64]


def sets_of(detection: Detection) -> Sets:
    """Find the latents of each concept on the documents on which they are chosen."""
    task = detection.task
    covered, holds = (np.zeros(len(task.choosing), np.bool_) for _ in range(2))
    latents, chosen = [], np.zeros(len(task.names))
    for concept in range(len(task.names)):
        tokens = task.tokens_of(concept, task.choosing)
        holds[tokens] = True
        found, score = _grow(detection, concept, holds, covered)
        holds[tokens] = False
        latents.append(found)
        chosen[concept] = score
    return Sets(latents, chosen)


def _grow(detection: Detection, concept: int, holds: Bools, covered: Bools) -> tuple[list[int], float]:
    task, scores = detection.task, detection.chosen[:, concept]
    positives = int(task.counts[0, concept])
    first = int(detection.latent_of[concept])
    best_ones = np.argpartition(-scores, min(_TRIED, len(scores) - 1))[:_TRIED].tolist()
    tried = [first, *(latent for latent in best_ones if latent != first and scores[latent] > 0)]
    firings = [_at(detection, latent, concept, task.choosing) for latent in tried]
    kept = [place for place, at in enumerate(firings) if not place or holds[at].mean() >= _LEAST_PRECISION]
    owner = np.repeat(np.arange(len(kept)), [len(firings[place]) for place in kept])
    tokens = np.concatenate([firings[place] for place in kept])
    is_right = holds[tokens]
    found: list[int] = []
    right = picked = 0
    score = 0.0
    while len(found) < MOST_LATENTS:
        new = ~covered[tokens]
        more = np.bincount(owner[new], minlength=len(kept))
        more_right = np.bincount(owner[new & is_right], minlength=len(kept))
        scored = f1(right + more_right, picked + more, positives)
        best = 0 if not found else int(scored.argmax())
        if found and scored[best] < score + RISE:
            break
        found.append(tried[kept[best]])
        score, right, picked = float(scored[best]), right + int(more_right[best]), picked + int(more[best])
        covered[firings[kept[best]]] = True
    covered[tokens] = False
    return found, score


def absorption(detection: Detection, sets: Sets) -> Absorption:
    """Count, on the documents of the tests, where a parent's latents are silent beside a child's that fires."""
    task = detection.task
    counted, latents, columns = [], [], []
    fires = np.zeros(len(task.testing), np.bool_)
    own = np.zeros(len(task.testing), np.bool_)
    own_of = {parent: _own(detection, parent, sets.latents[parent]) for parent in set(task.pairs[:, 0].tolist())}
    for parent, child in task.pairs.tolist():
        latent = int(detection.latent_of[child])
        if not own_of[parent] or latent in own_of[parent] or detection.chosen[latent, child] < LEAST_F1:
            continue
        for one in own_of[parent]:
            fires[detection.firing_tokens(one)] = True
        of_child, of_parent = (task.tokens_of(one, task.testing) for one in (child, parent))
        own[detection.firing_tokens(latent, int(detection.chosen_level[latent, child]))] = True
        both = of_child[own[of_child]]
        rest = np.setdiff1d(of_parent, of_child, assume_unique=True)
        columns.append(
            [_by_document(detection, tokens) for tokens in (both, both[~fires[both]], rest, rest[~fires[rest]])]
        )
        counted.append((parent, child))
        latents.append(latent)
        fires[:], own[:] = False, False
    empty = np.zeros((0, 4, len(task.test_documents)))
    of_child, silent, elsewhere, silent_elsewhere = np.array(columns or empty, np.float64).transpose(1, 2, 0)
    pairs = np.array(counted, np.int64).reshape(-1, 2)
    return Absorption(pairs, np.array(latents, np.int64), of_child, silent, elsewhere, silent_elsewhere)


def _own(detection: Detection, parent: int, latents: list[int]) -> list[int]:
    """Return the latents of a concept that detect no kind of it better; none if their union detects it poorly."""
    task = detection.task
    kinds = task.names[parent] + "."
    own = [latent for latent in latents if not task.names[detection.concept_of[latent]].startswith(kinds)]
    picked = union(detection, parent, own, task.choosing)
    right = picked[task.tokens_of(parent, task.choosing)].sum()
    return own if f1(right, picked.sum(), task.counts[0, parent]) >= LEAST_F1 else []


def union(detection: Detection, concept: int, latents: list[int], where: Bools) -> Bools:
    """Return at which of some tokens one of some latents detects a concept, (T,)."""
    found = np.zeros(len(where), np.bool_)
    for latent in latents:
        found[_at(detection, latent, concept, where)] = True
    return found


def _at(detection: Detection, latent: int, concept: int, where: Bools) -> NDArray[np.int32]:
    tokens = detection.firing_tokens(latent, int(detection.chosen_level[latent, concept]))
    return tokens[where[tokens]]


def _by_document(detection: Detection, tokens: Indices) -> NDArray[np.int64]:
    task = detection.task
    return np.bincount(task.document_of[tokens], minlength=len(task.test_documents))
