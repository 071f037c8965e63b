"""Documents put together again from token rows, and where their tokens lie in the text.

Axes: n rows, S tokens in a row, T tokens of a document, V vocabulary.

A concept holds at a token if it holds at one of its characters other than spaces; a token of nothing but spaces has
what holds at the first of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.labels.concepts import pieces_of, spoken
from lightsae.analysis.reading.text import TextRows

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class DocumentText:
    """A stretch of a document without gaps: all of it, unless the text ends before it does.

    Attributes:
        first: Flat index of its first token in the text.
        pieces: (T,) what its tokens say.
    """

    first: int
    pieces: list[str]

    @cached_property
    def text(self) -> str:
        return "".join(self.pieces)

    @cached_property
    def speaks(self) -> NDArray[np.bool_]:
        """(T,) which tokens say something; those that mark a begin or an end do not."""
        return np.array([bool(piece) for piece in self.pieces], np.bool_)

    @cached_property
    def _bounds(self) -> tuple[Ints, Ints]:
        """Where the signs of each token begin, and where they end."""
        lengths = np.array([len(piece) for piece in self.pieces], np.int64)
        starts = np.r_[0, lengths.cumsum()[:-1]] if len(lengths) else lengths
        led = np.array([len(piece) - len(piece.lstrip()) for piece in self.pieces], np.int64)
        trailed = np.array([len(piece.rstrip()) for piece in self.pieces], np.int64)
        blank = (trailed == 0) & (lengths > 0)
        return starts + np.where(blank, 0, led), starts + np.where(blank, 1, trailed)

    def tokens_at(self, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
        """Return the tokens of the text at which stretches of characters stand: from the first to before the last."""
        begins, stops = self._bounds
        first = np.searchsorted(stops, starts, side="right")
        last = np.searchsorted(begins, ends, side="left")
        return self.first + first, self.first + np.maximum(first, last)


def documents_of(rows: TextRows, texts: Sequence[str]) -> Iterator[DocumentText]:
    """Yield the documents of a text.

    Args:
        rows: The text.
        texts: (V,) what each token says.
    """
    said = spoken(texts)
    flat = rows.tokens.ravel()
    for start, end in pieces_of(rows.tokens.shape, rows.documents, rows.numbers):
        yield DocumentText(start, said[flat[start:end]].tolist())
