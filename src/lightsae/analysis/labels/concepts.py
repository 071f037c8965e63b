"""Concepts that a label may draw on: where in Python source a token stands. In prose there are none.

Axes: n rows, S tokens in a row.

Every document is read once, whatever the number of features: what follows row after row is put together again. A
token that begins with spaces, or is made of nothing else, stands where the next sign stands; a newline ends the line it
is on, and its indentation is that of the next one.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.labels.python_source import ASPECTS, read_source

Numbers = NDArray[np.int64]
# Tokens that mark the begin or end of a document are no part of its text.
_MARK = re.compile(r"<\|.*\|>|</?s>|<pad>|<unk>|\[[A-Z]{3}\]")


def aspects_of(
    tokens: NDArray[np.int32],
    texts: Sequence[str],
    documents: NDArray[np.int64] | None = None,
    numbers: NDArray[np.int64] | None = None,
) -> dict[str, Numbers]:
    """Return, by name of ASPECTS, the (n, S) numbers of the tokens.

    Args:
        tokens: (n, S) token ids.
        texts: (V,) what each token says.
        documents: (n, S) running numbers of the documents; None: every row is one.
        numbers: (n,) running numbers of the rows: one that follows on another continues its last document.
    """
    said = spoken(texts)
    aspects = {name: np.zeros(tokens.size, np.int64) for name in ASPECTS}
    flat = tokens.ravel()
    for start, end in pieces_of(tokens.shape, documents, numbers):
        pieces = said[flat[start:end]].tolist()
        for name, values in _read(pieces).items():
            aspects[name][start:end] = values
    return {name: values.reshape(tokens.shape) for name, values in aspects.items()}


def spoken(texts: Sequence[str]) -> NDArray[np.object_]:
    """Return what each token adds to its document's text, (V,): nothing, if it marks a begin or an end."""
    return np.array(["" if _MARK.fullmatch(text) else text for text in texts], dtype=object)


def pieces_of(
    shape: tuple[int, ...], documents: NDArray[np.int64] | None, numbers: NDArray[np.int64] | None
) -> Iterator[tuple[int, int]]:
    """Yield where each piece of a document begins and ends, as flat token indices."""
    rows, length = shape
    if not rows * length:
        return
    begins = np.zeros(rows * length, np.bool_)
    begins[::length] = True
    if documents is not None:
        flat = documents.ravel()
        begins[1:] |= flat[1:] != flat[:-1]
        if numbers is not None:
            follows = (np.diff(numbers) == 1) & (documents[1:, 0] == documents[:-1, -1])
            begins[length::length] = ~follows
    starts = np.flatnonzero(begins)
    yield from zip(starts.tolist(), [*starts[1:].tolist(), rows * length], strict=True)


def _read(pieces: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    text = "".join(pieces)
    source = read_source(text)
    if source is None:
        return {}
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = np.r_[0, ends[:-1]]
    signs = np.array([not sign.isspace() for sign in text] + [True])
    # The first sign at or after each character.
    next_sign = np.minimum.accumulate(np.where(signs, np.arange(len(text) + 1), len(text))[::-1])[::-1]
    places = next_sign[starts]
    newlines = np.array(["\n" in piece and piece.isspace() for piece in pieces])
    on_the_line = starts + np.array([max(0, piece.find("\n")) for piece in pieces])
    within = np.where(newlines, on_the_line, places)
    # A space inside a string or a comment is part of it, whatever comes next.
    spaces = np.array([piece.isspace() for piece in pieces])
    region = source["region"]
    return {
        "region": np.where(spaces & (region[starts] > 1), region[starts], region[within]),
        "role": source["role"][within],
        "depth": source["depth"][places],
        "line": source["line"][places],
    }
