"""Which concepts hold at which tokens of a text, and how the concepts are nested.

Axes:    T tokens of the text (rows * S), C concepts, M marks.

A concept has a name with dots in it, which is its place in the hierarchy: `string.docstring.class` is a
`string.docstring`, which is a `string`. What marks the child marks its parents, so that a child's tokens are tokens of
its parent without exception.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
# Of scipy's tables, whose indices are as wide as they have to be.
Indices = NDArray[np.integer[Any]]
# Tokens whose table of bits is made at once.
_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Truth:
    """What is known of each token of a text.

    Attributes:
        names: (C,) names, sorted, so that a parent stands before its children.
        holds: (T, C) which concepts hold; the entries are 1.
        known: (T,) of which tokens it is known what holds. Of the others nothing is said, not even that nothing holds.
    """

    names: tuple[str, ...]
    holds: sparse.csr_array
    known: Bools

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def place(self) -> dict[str, int]:
        """The number of each concept."""
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def parents(self) -> Ints:
        """(C,) the number of the nearest concept that each is a kind of; -1 of those that are of none."""
        return np.array([self.place.get(parent_of(name), -1) for name in self.names], np.int64)

    @cached_property
    def _bits(self) -> NDArray[np.uint8]:
        parts = (self.holds[start : start + _AT_ONCE] for start in range(0, self.holds.shape[0], _AT_ONCE))
        bits = [np.packbits(part.toarray().astype(np.bool_), axis=1) for part in parts]
        return np.concatenate(bits) if bits else np.zeros((0, 1), np.uint8)

    def at(self, tokens: Indices, concepts: Indices) -> Bools:
        """Return whether a concept holds at a token, for pairs of them."""
        found: Bools = (self._bits[tokens, concepts >> 3] >> (7 - (concepts & 7)).astype(np.uint8) & 1).astype(np.bool_)
        return found

    def beside(self, other: "Truth") -> "Truth":
        """Return both; known is what is known of the two."""
        names = sorted({*self.names, *other.names})
        assert len(names) == len(self) + len(other), "two truths have no name in common"
        stacked = sparse.csr_array(sparse.hstack([self.holds, other.holds], format="csr"))
        place = {name: number for number, name in enumerate((*self.names, *other.names))}
        return Truth(tuple(names), stacked[:, [place[name] for name in names]], self.known & other.known)

    @classmethod
    def of(cls, names: Sequence[str], concepts: Ints, first: Ints, last: Ints, known: Bools) -> "Truth":
        """Return the truth that marks give: concept `concepts[m]` holds at the tokens from `first[m]` to before
        `last[m]`, and so does everything that it is a kind of.
        """
        everyone = sorted({ancestor for name in names for ancestor in lineage(name)})
        place = {name: number for number, name in enumerate(everyone)}
        kept = last > first
        concepts, first, last = concepts[kept], first[kept], last[kept]
        lengths = last - first
        tokens = np.repeat(first - np.r_[0, lengths.cumsum()[:-1]], lengths) + np.arange(lengths.sum())
        entries = np.ones(len(tokens), np.int32)
        marked = sparse.csr_array((entries, (tokens, np.repeat(concepts, lengths))), (len(known), len(names)))
        pairs = [(number, place[ancestor]) for number, name in enumerate(names) for ancestor in lineage(name)]
        of, ancestors = np.array(pairs, np.int64).reshape(-1, 2).T
        kinds = sparse.csr_array((np.ones(len(of), np.int32), (of, ancestors)), (len(names), len(everyone)))
        holds = sparse.csr_array(marked @ kinds)
        holds.sort_indices()
        holds.data[:] = 1
        return cls(tuple(everyone), holds, known)


def parent_of(name: str) -> str:
    """Return what a concept is a kind of, or nothing.

    >>> parent_of("string.docstring"), parent_of("string")
    ('string', '')
    """
    return name.rpartition(".")[0]


def lineage(name: str) -> list[str]:
    """Return a concept and all that it is a kind of.

    >>> lineage("string.docstring.class")
    ['string', 'string.docstring', 'string.docstring.class']
    """
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


class Marks:
    """Stretches of a text, in characters, at which concepts hold: gathered document by document."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self._marks = array("q")

    def add(self, name: str, start: int, end: int) -> None:
        """Mark the characters from `start` to before `end`."""
        number = self.names.setdefault(name, len(self.names))
        self._marks.extend((number, start, end))

    def take(self) -> Ints:
        """Return the (M, 3) marks since the last call: concept, start, end."""
        marks = np.array(self._marks, np.int64).reshape(-1, 3)
        self._marks = array("q")
        return marks
