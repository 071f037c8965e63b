"""Kinds of text files, by their names; and how each is opened, compressed or not."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightsae.errors import CorpusError, arg

# What a file may end in, before its compression, and the kind that this means.
KINDS = {".parquet": "parquet", ".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".txt": "text"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_READ_AT_ONCE = 1 << 20


def named_suffixes() -> str:
    """Return what a file may end in, for a message."""
    return f"{', '.join(KINDS)} (all but .parquet also with {', '.join(_COMPRESSIONS)} behind it)"


def kind_of(path: Path) -> str | None:
    """Return the kind of a text file by its name; None where it is none.

    Example:
        >>> kind_of(Path("a.jsonl.gz")), kind_of(Path("a.md"))
        ('lines', None)
    """
    inner = path.suffix
    if inner in _COMPRESSIONS:
        inner = Path(path.stem).suffix
        if inner == ".parquet":  # which compresses its columns itself, and has to be read from its end
            return None
    return KINDS.get(inner)


@contextmanager
def opened(path: Path, offset: int = 0) -> Iterator[io.BufferedReader]:
    """Open a file at a place, counted in its bytes after decompression: what comes before is passed over.

    Raises:
        CorpusError: What is read of it in the block is damaged or cut short.
    """
    compression = _COMPRESSIONS.get(path.suffix)
    if compression is None:
        with path.open("rb") as plain:
            plain.seek(offset)
            yield plain
        return
    import pyarrow as pa

    with path.open("rb"):
        pass  # what is amiss with the file itself is said as of every other
    try:
        with io.BufferedReader(pa.input_stream(str(path), compression=compression), _READ_AT_ONCE) as file:
            while offset > 0 and (skipped := len(file.read(min(offset, _READ_AT_ONCE)))):
                offset -= skipped
            yield file
    except OSError as error:
        raise CorpusError(f"{arg('dataset')}: {path.name} cannot be decompressed ({error}).") from None
