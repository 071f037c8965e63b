"""Read documents from local files, from any place in them: text, JSON, CSV, parquet, and `datasets` tables.

A resumed run starts where it stopped, without reading what came before. Offsets are bytes in text files, JSON lines and
CSV, and row numbers elsewhere. A compressed file is decompressed from its start.
"""

import codecs
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightsae.activations.corpus.columns import Columns, documents_of
from lightsae.activations.corpus.documents import Document, Part, refuse_cut
from lightsae.activations.corpus.suffixes import kind_of, opened
from lightsae.errors import CorpusError, arg, reading
from lightsae.parsing import parse_json_of_others

_SEPARATOR = b"<|endoftext|>"
_LONGEST = 1 << 20
_LONGEST_UNSEPARATED = 1 << 15
_SHORTEST_UNSEPARATED = 1 << 10
_ROWS_AT_A_TIME = 256
# A field of CSV that is longer is one whose quote is never closed.
_LONGEST_FIELD = 1 << 26


def file_part(path: Path, text_column: str, *, alone: bool) -> Part:
    """Return the part that reads one file.

    Args:
        path: A file of one of the `KINDS`.
        text_column: Column of the documents; .txt has none.
        alone: The file is the whole corpus, so that a text file without separators has to be cut into documents.
    """
    match kind_of(path):
        case "text":
            return lambda offset: _read_text(path, offset, alone)
        case "parquet":
            return lambda offset: _read_parquet(path, text_column, offset)
        case "csv":
            return lambda offset: _read_csv(path, text_column, offset)
        case _:
            return lambda offset: _read_json(path, text_column, offset)


def table_part(table: Any, text_column: str, where: str, sizes: Mapping[Path, int] | None = None) -> Part:
    """Return the part that reads a `datasets.Dataset`, a few rows at a time.

    Args:
        table: The dataset.
        text_column: Column of the documents.
        where: What the dataset is called in errors.
        sizes: Of its files, which are mapped into memory: a page that is missing would end the process.
    """
    columns = Columns.choose(table.column_names, text_column, where)
    table = table.select_columns(columns.names).with_format("arrow")

    def read(offset: int) -> Iterator[tuple[Document, int]]:
        with reading(CorpusError, f"{arg('dataset')}: {where} cannot be read"):
            for start in range(offset, len(table), _ROWS_AT_A_TIME):
                refuse_cut(sizes or {})
                # Nobody has looked where its offsets point to: beyond the file, that would end the process.
                rows = table[start : start + _ROWS_AT_A_TIME]
                rows.validate(full=True)
                yield from documents_of(rows.to_pylist(), start, columns, where)

    return read


def _read_text(path: Path, offset: int, alone: bool) -> Iterator[tuple[Document, int]]:
    """Documents end at `<|endoftext|>`; without it a file is one document, cut at blank lines where it is long.

    Long means above 32 KiB; for a file that is the whole corpus, 1/64 of its size (at least 1 KiB), since one document
    could not be shared between training and validation.
    """
    longest = _LONGEST
    with opened(path) as file:
        if _SEPARATOR not in file.read(_LONGEST):
            longest = _LONGEST_UNSEPARATED
            if alone:
                longest = min(max(path.stat().st_size // 64, _SHORTEST_UNSEPARATED), longest)
    with opened(path, offset) as file:
        buffer = file.read(2 * longest)
        while buffer:
            end = buffer.find(_SEPARATOR, 0, longest + len(_SEPARATOR))
            after = end + len(_SEPARATOR)
            if end < 0:
                end = after = len(buffer) if len(buffer) <= longest else _cut(buffer, longest)
            text = buffer[:end].decode("utf-8-sig" if offset == 0 else "utf-8", errors="replace")
            offset += after
            # The line ends beside a separator belong to the file's layout, the others to the text.
            if text.strip():
                yield text.replace("\r\n", "\n").strip("\n"), offset
            buffer = buffer[after:]
            if len(buffer) <= longest + len(_SEPARATOR):
                buffer += file.read(2 * longest)


def _cut(buffer: bytes, longest: int) -> int:
    """Return the place for a cut, in the second half if there is one: after a blank line, a line, a word."""
    for mark in (b"\n\n", b"\n", b" "):
        if (place := buffer.rfind(mark, longest // 2, longest)) > 0:
            return place + len(mark)
    while longest > 1 and buffer[longest] & 0xC0 == 0x80:  # not inside a UTF-8 character
        longest -= 1
    return longest


def _read_json(path: Path, text_column: str, offset: int) -> Iterator[tuple[Document, int]]:
    yield from (_read_lines if _is_lines(path) else _read_list)(path, text_column, offset)


def _is_lines(path: Path) -> bool:
    """Whether it is JSON lines: by its name, or a .json file whose first line is a complete object."""
    if kind_of(path) == "lines":
        return True
    with opened(path) as file:
        if file.peek(4)[:4].removeprefix(codecs.BOM_UTF8)[:1] != b"{":  # a list may be one line of gigabytes
            return False
        try:
            return isinstance(parse_json_of_others(file.readline()), dict)
        except ValueError:
            return False


def _read_lines(path: Path, text_column: str, offset: int) -> Iterator[tuple[Document, int]]:
    columns = Columns.of_records((record for record, _ in _lines(path, 0)), text_column, path.name)
    if columns is not None:
        for record, place in _lines(path, offset):
            yield from ((document, place) for document, _ in documents_of([record], 0, columns, path.name))


def _lines(path: Path, offset: int) -> Iterator[tuple[Any, int]]:
    """Yield the record of each line from `offset` on, with the place after it."""
    with opened(path, offset) as file:
        place = offset
        for line in file:
            where = f"the line at byte {place} of {path.name}"
            place += len(line)
            if not line.strip():
                continue
            try:
                record = parse_json_of_others(line)
            except ValueError as error:
                raise CorpusError(f"{arg('dataset')}: {where} is not JSON ({error}).") from None
            yield record, place


def _read_list(path: Path, text_column: str, offset: int) -> Iterator[tuple[Document, int]]:
    """A list of objects (or a single one) has no lines to read one by one: the file is held in memory."""
    try:
        with opened(path) as file:
            records = parse_json_of_others(file.read())
    except ValueError as error:
        raise CorpusError(f"{arg('dataset')}: {path.name} is not JSON ({error}).") from None
    records = records if isinstance(records, list) else [records]
    columns = Columns.of_records(records, text_column, path.name)
    if columns is not None:
        yield from documents_of(records[offset:], offset, columns, path.name)


def _read_csv(path: Path, text_column: str, offset: int) -> Iterator[tuple[Document, int]]:
    """The first row is a header; quoted fields may hold line ends."""
    header, start = next(_csv_rows(path, 0), ([], 0))
    if not header:
        return
    columns = Columns.choose(header, text_column, path.name)
    for row, place in _csv_rows(path, max(offset, start)):
        # A row may be shorter than the header.
        if (document := columns.document_of(dict(zip(header, row, strict=False)), path.name)) is not None:
            yield document, place


def _csv_rows(path: Path, offset: int) -> Iterator[tuple[list[str], int]]:
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


def _read_parquet(path: Path, text_column: str, offset: int) -> Iterator[tuple[Document, int]]:
    import pyarrow.parquet as pq

    with (
        reading(CorpusError, f"{arg('dataset')}: {path.name} is not a readable parquet file"),
        pq.ParquetFile(path) as file,
    ):
        columns = Columns.choose(file.schema_arrow.names, text_column, path.name)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if offset < first + rows:
                start = first
                for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=columns.names):
                    skip = min(max(offset - start, 0), len(batch))
                    records = batch.slice(skip).to_pylist()
                    yield from documents_of(records, start + skip, columns, path.name)
                    start += len(batch)
            first += rows
