"""A file of concepts: documents with named spans, as JSON Lines or as one JSON list.

Axes: C characters of a document.

    {"text": "Ada Lovelace wrote to Babbage.", "spans": [[0, 12, "name.person"], [22, 29, "name.person"]]}

A span is the place of its first character, the place behind its last, and its concept; dots in a name make the
hierarchy. Documents are told by their text, without spaces, since tokenizers may change those.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.concepts.documents import DocumentText
from lightsae.analysis.concepts.truth import Marks
from lightsae.errors import ConfigError, FormatError
from lightsae.parsing import parse_json_entries, read_bytes

_AS = 'one object a line, {"text": "...", "spans": [[START, END, "NAME"], ...]}'
_MOST_BYTES = 1 << 30
# Characters, without spaces, by which a document is looked up.
_KEY = 16
# Bounds: a name with many dots, or many spans over much of a text, stands for far more than it takes to write.
MOST_CONCEPTS, _LEVELS, _MOST_COVERED = 5000, 16, 1 << 27


@dataclass(frozen=True)
class _Described:
    signs: str
    places: NDArray[np.int64]
    spans: list[tuple[int, int, str]]


class ConceptFile:
    """Documents with named spans.

    Attributes:
        path: As the user wrote it.
        names: Of its concepts.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._documents: dict[str, list[_Described]] = {}
        self.names: set[str] = set()
        self._covered = 0

    @classmethod
    def read(cls, path: str) -> "ConceptFile":
        """Read a file.

        Raises:
            ConfigError: It does not exist.
            FormatError: It cannot be read, or is no such file.
        """
        if not Path(path).is_file():
            raise ConfigError("concepts", path, "name a file that exists, or write auto or none")
        made = cls(path)
        try:
            for number, entry in enumerate(parse_json_entries(read_bytes(Path(path), _MOST_BYTES))):
                made._add(entry, number + 1)
        except OSError as error:
            raise FormatError(f"{path!r} cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise FormatError(f"{path!r} is no file of concepts: {error}. Write {_AS}.") from error
        if not made.names:
            raise FormatError(f"{path!r} names no concept. Write {_AS}.")
        return made

    def _add(self, entry: Any, number: int) -> None:
        if not isinstance(entry, dict) or not isinstance(text := entry.get("text"), str):
            raise ValueError(f"document {number} has no text")
        if not isinstance(spans := entry.get("spans", []), list):
            raise ValueError(f"the spans of document {number} are no list")
        read = _merged([_span(span, len(text), number) for span in spans])
        self._covered += sum(end - start for start, end, _ in read)
        if self._covered > _MOST_COVERED:
            raise ValueError(f"its spans cover more than {_MOST_COVERED:,} characters in all")
        self.names |= {name for _, _, name in read}
        if len(self.names) > MOST_CONCEPTS:
            raise ValueError(f"it names more than {MOST_CONCEPTS:,} concepts")
        signs, places = _signs(text)
        self._documents.setdefault(signs[:_KEY], []).append(_Described(signs, places, read))

    def mark(self, document: DocumentText, marks: Marks) -> int:
        """Mark a document if the file has one of its text, or one that begins with it."""
        signs, places = _signs(document.text)
        for one in self._alike(signs):
            if one.signs.startswith(signs):
                # Where each of the file's signs stands in the document; behind its end, if the text cuts it off.
                beyond = np.append(places, len(document.text))
                for start, end, name in one.spans:
                    first, last = np.searchsorted(one.places, [start, end])
                    if first < min(last, len(places)):
                        marks.add(name, int(places[first]), int(beyond[min(last, len(places)) - 1]) + 1)
                return len(document.text)
        return 0

    def _alike(self, signs: str) -> list[_Described]:
        """Return the documents that may be one of these signs: the shortest first, so that a whole one is found."""
        if not signs:
            return []
        if len(signs) >= _KEY:
            return sorted(self._documents.get(signs[:_KEY], []), key=lambda one: len(one.signs))
        found = (one for key, some in self._documents.items() if key.startswith(signs) for one in some)
        return sorted(found, key=lambda one: len(one.signs))


def _span(span: Any, length: int, number: int) -> tuple[int, int, str]:
    if not isinstance(span, list) or len(span) != 3 or not all(type(place) is int for place in span[:2]):
        raise ValueError(f"a span of document {number} is {span!r:.60}, where [START, END, NAME] should be")
    start, end, name = span
    if not 0 <= start < end <= length:
        raise ValueError(
            f"a span of document {number} goes from {start} to {end}, and its text has {length} characters"
        )
    if not isinstance(name, str) or not name.isprintable() or not all(part.strip() for part in name.split(".")):
        raise ValueError(f"a concept of document {number} is called {name!r:.60}")
    if name.count(".") >= _LEVELS:
        raise ValueError(f"a concept of document {number} is a kind of more than {_LEVELS - 1} others")
    return start, end, name


def _merged(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Return the spans by name, those of one name that overlap as one."""
    merged: list[tuple[int, int, str]] = []
    for start, end, name in sorted(spans, key=lambda span: (span[2], span[0])):
        if merged and merged[-1][2] == name and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]), name)
        else:
            merged.append((start, end, name))
    return merged


def _signs(text: str) -> tuple[str, NDArray[np.int64]]:
    """Return the characters that are no spaces, and where they stand."""
    places = np.array([place for place, sign in enumerate(text) if not sign.isspace()], np.int64)
    return "".join(text.split()), places
