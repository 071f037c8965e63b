"""Read documents from local files, from any place in them: .txt, .jsonl, .json, .parquet, and `datasets` tables.

A resumed run starts where it stopped, without reading what came before. Offsets are bytes in text files and JSON lines,
and row numbers elsewhere.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lightsae.activations.corpus.documents import Document, Part
from lightsae.errors import CorpusError, arg, did_you_mean, reading
from lightsae.parsing import parse_json_of_others

SUFFIXES = (".parquet", ".jsonl", ".json", ".txt")
IDS_COLUMN = "input_ids"

_SEPARATOR = b"<|endoftext|>"
_LONGEST = 1 << 20
_LONGEST_UNSEPARATED = 1 << 15
_SHORTEST_UNSEPARATED = 1 << 10
_ROWS_AT_A_TIME = 256


def natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts chunk_2 before chunk_10.

    >>> sorted(["chunk_10.txt", "chunk_2.txt"], key=lambda name: natural_order(Path(name)))
    ['chunk_2.txt', 'chunk_10.txt']
    """
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces]


def choose_column(columns: Iterable[str], text_column: str, where: str) -> str:
    """Return the column to read: `text_column`, or `input_ids` where the default `text` does not exist.

    Raises:
        CorpusError: The column does not exist.
    """
    columns = list(columns)
    if text_column in columns:
        return text_column
    if text_column == "text" and IDS_COLUMN in columns:
        return IDS_COLUMN
    known = ", ".join(map(repr, sorted(columns))) or "no columns"
    raise CorpusError(
        f"{arg('text_column')} is {text_column!r}, but {where} has {known}." + did_you_mean(text_column, columns)
    )


def as_document(value: Any, column: str, where: str) -> Document | None:
    """Return the value of a text column as a document, or None where it is missing or blank.

    Raises:
        CorpusError: The value is neither text nor a list of token ids.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold and no tokenizer takes
            value = value.encode("utf-8", "replace").decode()
        return str(value)
    if isinstance(value, list | tuple | np.ndarray):
        with reading(CorpusError, f"{arg('text_column')} is {column!r}, which holds a list of no token ids in {where}"):
            ids = np.asarray(value)
        if ids.size == 0:
            return None
        if ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer):
            return ids.astype(np.int32)
    raise CorpusError(
        f"{arg('text_column')} is {column!r}, which holds {type(value).__name__} values in {where}; "
        "name a column of text, or of lists of token ids."
    )


def file_part(path: Path, text_column: str, *, alone: bool) -> Part:
    """Return the part that reads one file.

    Args:
        path: A file with one of `SUFFIXES`.
        text_column: Column of the documents; .txt has none.
        alone: The file is the whole corpus, so that a text file without separators has to be cut into documents.
    """
    match path.suffix:
        case ".txt":
            return lambda offset: _read_text(path, offset, alone)
        case ".parquet":
            return lambda offset: _read_parquet(path, text_column, offset)
        case _:
            return lambda offset: _read_json(path, text_column, offset)


def table_part(table: Any, text_column: str, where: str) -> Part:
    """Return the part that reads a `datasets.Dataset`, a few rows at a time."""
    column = choose_column(table.column_names, text_column, where)
    table = table.select_columns([column]).with_format(None)

    def read(offset: int) -> Iterator[tuple[Document, int]]:
        with reading(CorpusError, f"{arg('dataset')}: {where} cannot be read"):
            for start in range(offset, len(table), _ROWS_AT_A_TIME):
                yield from documents_of(table[start : start + _ROWS_AT_A_TIME][column], start, column, where)

    return read


def documents_of(values: Iterable[Any], first: int, column: str, where: str) -> Iterator[tuple[Document, int]]:
    """Yield the documents among the values of a column, numbered from `first`, each with the number after it."""
    for number, value in enumerate(values, start=first):
        if (document := as_document(value, column, where)) is not None:
            yield document, number + 1


def _read_text(path: Path, offset: int, alone: bool) -> Iterator[tuple[Document, int]]:
    """Documents end at `<|endoftext|>`; without it a file is one document, cut at blank lines where it is long.

    Long means above 32 KiB; for a file that is the whole corpus, 1/64 of its size (at least 1 KiB), since one document
    could not be shared between training and validation.
    """
    with path.open("rb") as file:
        longest = _LONGEST
        if _SEPARATOR not in file.read(_LONGEST):
            longest = _LONGEST_UNSEPARATED
            if alone:
                longest = min(max(path.stat().st_size // 64, _SHORTEST_UNSEPARATED), longest)
        file.seek(offset)
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
    if path.suffix == ".jsonl":
        return True
    with path.open("rb") as file:
        if file.read(4).removeprefix(codecs.BOM_UTF8)[:1] != b"{":  # a list may be one line of gigabytes
            return False
        file.seek(0)
        try:
            return isinstance(parse_json_of_others(file.readline()), dict)
        except ValueError:
            return False


def _column_of(record: Any, text_column: str, where: str) -> str:
    """The first record of a file decides which column is read; later ones may lack it, and are skipped."""
    if not isinstance(record, dict):
        raise CorpusError(
            f"{arg('dataset')}: {where} is {type(record).__name__}, not an object with a {text_column!r} in it."
        )
    return choose_column(record, text_column, where)


def _read_lines(path: Path, text_column: str, offset: int) -> Iterator[tuple[Document, int]]:
    column = None
    with path.open("rb") as file:
        place = 0
        for line in file:
            where = f"the line at byte {place} of {path.name}"
            place += len(line)
            if not line.strip():
                continue
            try:
                record = parse_json_of_others(line)
            except ValueError as error:
                raise CorpusError(f"{arg('dataset')}: {where} is not JSON ({error}).") from None
            if column is None:
                column = _column_of(record, text_column, where)
                if place <= offset:
                    file.seek(offset)
                    place = offset
                    continue
            document = as_document(record.get(column), column, where) if isinstance(record, dict) else None
            if document is not None:
                yield document, place


def _read_list(path: Path, text_column: str, offset: int) -> Iterator[tuple[Document, int]]:
    """A list of objects (or a single one) has no lines to read one by one: the file is held in memory."""
    try:
        records = parse_json_of_others(path.read_bytes())
    except ValueError as error:
        raise CorpusError(f"{arg('dataset')}: {path.name} is not JSON ({error}).") from None
    records = records if isinstance(records, list) else [records]
    if not records:
        return
    column = _column_of(records[0], text_column, f"the first entry of {path.name}")
    values = (record.get(column) if isinstance(record, dict) else None for record in records[offset:])
    yield from documents_of(values, offset, column, path.name)


def _read_parquet(path: Path, text_column: str, offset: int) -> Iterator[tuple[Document, int]]:
    import pyarrow.parquet as pq

    with (
        reading(CorpusError, f"{arg('dataset')}: {path.name} is not a readable parquet file"),
        pq.ParquetFile(path) as file,
    ):
        column = choose_column(file.schema_arrow.names, text_column, path.name)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if offset < first + rows:
                start = first
                for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=[column]):
                    skip = min(max(offset - start, 0), len(batch))
                    values = batch.column(0).slice(skip).to_pylist()
                    yield from documents_of(values, start + skip, column, path.name)
                    start += len(batch)
            first += rows
