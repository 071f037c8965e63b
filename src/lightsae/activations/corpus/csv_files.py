"""Read documents from CSV with a header; quoted fields may hold line ends. Offsets are bytes."""

import csv
from collections.abc import Iterator
from pathlib import Path

from lightsae.activations.corpus.columns import Columns
from lightsae.activations.corpus.documents import Document
from lightsae.activations.corpus.suffixes import opened
from lightsae.errors import CorpusError, arg

# A field that is longer is one whose quote is never closed.
_LONGEST_FIELD = 1 << 26


def read_csv(path: Path, text_column: str, offset: int) -> Iterator[tuple[Document, int]]:
    """Yield the documents from `offset` on, each with the place after it."""
    header, start = next(_rows(path, 0), ([], 0))
    if not header:
        return
    columns = Columns.choose(header, text_column, path.name)
    for row, place in _rows(path, max(offset, start)):
        # A row may be shorter than the header.
        if (document := columns.document_of(dict(zip(header, row, strict=False)), path.name)) is not None:
            yield document, place


def _rows(path: Path, offset: int) -> Iterator[tuple[list[str], int]]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    place = offset
    with opened(path, offset) as file:

        def lines() -> Iterator[str]:
            nonlocal place
            for line in file:
                encoding = "utf-8-sig" if place == 0 else "utf-8"
                place += len(line)
                yield line.decode(encoding, errors="replace")

        try:
            # The reader takes the lines of one row at a time, so that `place` is where it ends.
            for row in csv.reader(lines()):
                yield row, place
        except csv.Error as error:
            raise CorpusError(f"{arg('dataset')}: {path.name} is no CSV after byte {place} ({error}).") from None
