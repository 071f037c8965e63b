"""Documents in a fixed order with a cursor, and their split into training and validation.

A cursor is a small dict from which a source goes on without reading again what came before. Where there is no named
validation split, documents are shared out by a hash of their content, so that one which occurs twice stays on one side.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.roles import MARKUP, TEXT
from lightsae.errors import CorpusError, arg

# Messages with a role and a content.
Conversation = list[dict[str, Any]]


@dataclass(frozen=True)
class SpokenIds:
    """Token ids, and whose words each token is.

    Attributes:
        ids: Of 32 bits if they fit, as they do unless they are wrong.
        roles: Of each id; see `roles`.
        closing: Role of an EOS that stood behind them.
    """

    ids: NDArray[np.integer[Any]]
    roles: NDArray[np.uint8]
    closing: int = MARKUP

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, document: "NDArray[np.integer[Any]] | SpokenIds") -> "SpokenIds":
        """Return ids of which nobody says whose words they are as those of a text."""
        if isinstance(document, SpokenIds):
            return document
        return cls(document, np.full(len(document), TEXT, np.uint8))

    def within(self, first: int, last: int) -> "SpokenIds":
        """Return those from `first` to before `last`."""
        closing = int(self.roles[last]) if last < len(self) else self.closing
        return SpokenIds(self.ids[first:last], self.roles[first:last], closing)


# Text, a conversation, or token ids.
Document = str | Conversation | NDArray[np.integer[Any]] | SpokenIds
# Given an offset, yields each document together with the offset that comes after it.
Part = Callable[[int], Iterator[tuple[Document, int]]]
Split = Literal["train", "validation"]
Cursor = dict[str, Any]


@runtime_checkable
class DocumentSource(Protocol):
    """Documents in a fixed order. `read` returns None at the end, again and again, until the next `seek`.

    `fingerprint` names the corpus, `contents` returns a digest of each part of what it holds.
    """

    fingerprint: str

    def read(self) -> Document | None: ...

    def contents(self) -> dict[str, str]: ...

    def cursor(self) -> Cursor: ...

    def seek(self, cursor: Cursor) -> None: ...

    def close(self) -> None: ...


def whole(part: Part, sizes: Mapping[Path, int]) -> Part:
    """Return the part of a file that says so where the file has been cut short, rather than end, or be damaged."""

    def read(offset: int) -> Iterator[tuple[Document, int]]:
        try:
            yield from part(offset)
        except CorpusError:
            refuse_cut(sizes)
            raise
        refuse_cut(sizes)

    return read


def refuse_cut(sizes: Mapping[Path, int]) -> None:
    """Hold files against the sizes that they had when they were opened.

    Raises:
        CorpusError: One is shorter now.
    """
    for path, size in sizes.items():
        if (now := path.stat().st_size) < size:
            raise CorpusError(
                f"{arg('dataset')}: {path.name} has been cut short since it was opened, from {size} bytes to {now}."
            )


class PartsSource:
    """Parts that can be read from any offset, one after another."""

    def __init__(self, parts: Sequence[Part], fingerprint: str, contents: Callable[[], dict[str, str]]) -> None:
        self.fingerprint, self.contents = fingerprint, contents
        self._parts = parts
        self.seek({"part": 0, "offset": 0})

    def read(self) -> Document | None:
        while self._part < len(self._parts):
            try:
                document, self._offset = next(self._documents)
                return document
            except StopIteration:
                self.seek({"part": self._part + 1, "offset": 0})
            except OSError as error:
                raise CorpusError(
                    f"{arg('dataset')}: {error.filename or 'a file'} cannot be read: {error.strerror or error}."
                ) from None
        return None

    def cursor(self) -> Cursor:
        return {"part": self._part, "offset": self._offset}

    def seek(self, cursor: Cursor) -> None:
        self._part, self._offset = cursor["part"], cursor["offset"]
        self._documents: Iterator[tuple[Document, int]] = (
            self._parts[self._part](self._offset) if self._part < len(self._parts) else iter(())
        )

    def close(self) -> None:
        self._documents = iter(())  # frees the open file


class HeldOutShare:
    """One side of a source that is split by a hash of each document's content."""

    def __init__(self, source: DocumentSource, split: Split, fraction: float) -> None:
        self.fingerprint, self.contents = source.fingerprint, source.contents
        self._source = source
        self._split = split
        self._fraction = fraction
        start = source.cursor()
        first = [_position(document) for _ in range(math.ceil(1 / fraction)) if (document := source.read()) is not None]
        source.seek(start)
        if len(first) == 1:
            raise CorpusError(
                f"{arg('dataset')} has only one document ({source.fingerprint}); it takes two to hold one out. "
                f"Give {arg('validation_split')}, or more documents."
            )
        # So that a corpus of few documents has a validation split too.
        self._always = min(first, default=None)

    def read(self) -> Document | None:
        while (document := self._source.read()) is not None:
            position = _position(document)
            if (position < self._fraction or position == self._always) == (self._split == "validation"):
                return document
        return None

    def cursor(self) -> Cursor:
        return self._source.cursor()

    def seek(self, cursor: Cursor) -> None:
        self._source.seek(cursor)

    def close(self) -> None:
        self._source.close()


def _position(document: Document) -> float:
    """Return a number in [0, 1) that depends on the document's content alone."""
    if isinstance(document, list):
        document = json.dumps(document, sort_keys=True, default=str)
    data = document.encode() if isinstance(document, str) else SpokenIds.of(document).ids.tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48
