"""The concepts of a text that latents are scored on, and its documents in two halves: one to choose on, one to test.

Axes: T tokens, C concepts, N documents of the half that tests.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lightsae.analysis.concepts.truth import Bools, Indices, Ints, Truth

# A concept is scored if it holds at so many tokens of either half, and at no more than this share of them.
LEAST_TOKENS, MOST = 20, 0.5


@dataclass(frozen=True)
class Task:
    """What is scored, and where.

    Attributes:
        truth: The concepts that are scored, and what else is known of the text.
        scored: (C,) which of the concepts of `truth` are.
        documents: (T,) number of each token's document.
        choosing: (T,) the tokens on which latents and thresholds are chosen: counted ones, of which the truth is known.
        testing: (T,) those on which they are tested, of other documents.
    """

    truth: Truth
    scored: Bools
    documents: Ints
    choosing: Bools
    testing: Bools

    @classmethod
    def of(cls, truth: Truth, documents: Ints, counted: Bools) -> "Task | None":
        """Deal the documents, and see which concepts there are enough of; None if there is nothing to score.

        Args:
            truth: Of the text.
            documents: (T,) running number of each token's document.
            counted: (T,) tokens on which latents fire that count.
        """
        usable = truth.known & counted
        for_tests = np.isin(documents, _half(documents[usable]))
        choosing, testing = usable & ~for_tests, usable & for_tests
        positives = [truth.holds.T @ half.astype(np.int32) for half in (choosing, testing)]
        enough = [np.asarray(count) >= LEAST_TOKENS for count in positives]
        rare = [
            np.asarray(count) <= MOST * half.sum() for count, half in zip(positives, (choosing, testing), strict=True)
        ]
        scored = enough[0] & enough[1] & rare[0] & rare[1]
        return cls(truth, scored, documents, choosing, testing) if scored.any() else None

    @cached_property
    def concepts(self) -> Ints:
        """Numbers of the scored concepts, in the order in which they are scored."""
        return np.flatnonzero(self.scored)

    @cached_property
    def names(self) -> list[str]:
        """(C,) names of the scored concepts."""
        return [self.truth.names[number] for number in self.concepts]

    @cached_property
    def holds(self) -> sparse.csr_array:
        """(T, C) where the scored concepts hold."""
        return sparse.csr_array(self.truth.holds[:, self.concepts])

    @cached_property
    def columns(self) -> sparse.csc_array:
        """The same, for going through one concept's tokens."""
        return self.holds.tocsc()

    def tokens_of(self, concept: int, where: Bools) -> Indices:
        """Return the tokens, among some, at which a scored concept holds."""
        tokens = self.columns.indices[self.columns.indptr[concept] : self.columns.indptr[concept + 1]]
        kept: Indices = tokens[where[tokens]]
        return kept

    @cached_property
    def pairs(self) -> Ints:
        """(P, 2) scored concepts of which the second is a kind of the first, and holds less often in either half."""
        place = {int(number): rank for rank, number in enumerate(self.concepts)}
        found = []
        for child, number in enumerate(self.concepts.tolist()):
            parent = int(self.truth.parents[number])
            while parent >= 0 and parent not in place:
                parent = int(self.truth.parents[parent])
            if parent >= 0 and (self.counts[:, child] < self.counts[:, place[parent]]).all():
                found.append((place[parent], child))
        return np.array(found, np.int64).reshape(-1, 2)

    @cached_property
    def counts(self) -> Ints:
        """(2, C) tokens of each concept where it is chosen on, and where it is tested."""
        halves = (self.choosing, self.testing)
        return np.stack([np.asarray(self.holds.T @ half.astype(np.int64)) for half in halves])

    @cached_property
    def always(self) -> NDArray[np.float64]:
        """(C,) F1 of a latent that always fires, on the documents of the tests."""
        share = self.counts[1] / self.testing.sum()
        return np.asarray(2 * share / (1 + share))

    @cached_property
    def test_documents(self) -> Ints:
        """(N,) numbers of the documents of the tests."""
        return np.unique(self.documents[self.testing])

    @cached_property
    def document_of(self) -> Ints:
        """(T,) place of each token's document among those of the tests; meaningless elsewhere."""
        return np.minimum(np.searchsorted(self.test_documents, self.documents), len(self.test_documents) - 1)

    @cached_property
    def positives(self) -> NDArray[np.float64]:
        """(N, C) tokens of each concept in each document of the tests."""
        tokens = np.flatnonzero(self.testing)
        ones = np.ones(len(tokens))
        shape = (len(self.test_documents), len(self.testing))
        rows = sparse.csr_array((ones, (self.document_of[tokens], tokens)), shape)
        return np.asarray((rows @ self.holds).toarray())


def _half(documents: Ints) -> Ints:
    """Return the documents of the tests: the largest first, each goes to the half that has fewer tokens."""
    numbers, sizes = np.unique(documents, return_counts=True)
    tokens, dealt = [0, 0], []
    for place in np.lexsort((numbers, -sizes)):
        to_tests = tokens[1] < tokens[0]
        tokens[to_tests] += int(sizes[place])
        if to_tests:
            dealt.append(int(numbers[place]))
    return np.array(sorted(dealt), np.int64)
