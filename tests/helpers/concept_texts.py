"""Texts cut into tokens that a person can read, and what holds at them."""

import re
from collections.abc import Sequence

import numpy as np

from lightsae.analysis.concepts.truth import Truth
from lightsae.analysis.reading.text import TextRows

# Words, each sign, runs of spaces that follow a newline; a space before a word belongs to it.
_PIECES = re.compile(r" ?\w+|\n *| ?[^\w\s]| ")


def rows_of(*documents: str) -> tuple[TextRows, list[str]]:
    """Return documents as one row of tokens, and what each token id says."""
    pieces = [_PIECES.findall(text) for text in documents]
    flat = [piece for some in pieces for piece in some]
    assert "".join(flat) == "".join(documents)
    vocabulary = sorted(set(flat))
    ids = np.array([[vocabulary.index(piece) for piece in flat]], np.int32)
    numbers = np.repeat(np.arange(len(documents)), [len(some) for some in pieces])[None]
    return TextRows(ids, numbers, np.arange(1)), vocabulary


def said_at(truth: Truth, rows: TextRows, vocabulary: Sequence[str], name: str) -> list[str]:
    """Return what the tokens say at which a concept holds, in order, without spaces around."""
    holds = truth.holds.toarray()[:, truth.place[name]] > 0
    return [vocabulary[token].strip() for token in rows.tokens.ravel()[holds]]
