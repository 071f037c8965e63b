"""The corpus `builtin`: the text of the running Python's own standard library.

Every Python has it, so that nothing is downloaded and no text is copied into the package. A document is one module's
source, or one topic of `pydoc_data` (the language reference as plain text). Documents are split into train and
validation by a hash of their name: the split does not move when a module is added, and it is the same for the language
model that ships with the package and for every dictionary trained on it.

Left out: `encodings` (tables of code points), and the test packages, which many distributions do not install;
`scripts/train_builtin_lm.py` reads them as additional training text where they exist.
"""

import hashlib
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightsae.activations.corpus.documents import Split

VALIDATION_SHARE = 0.1
_EXCLUDED = {"site-packages", "dist-packages", "__pycache__", "encodings"}
_TESTS = {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class LibraryText:
    """One text with a name that is stable across machines."""

    name: str
    text: str


def split_of(name: str) -> Split:
    """Return the side on which the document `name` falls; depends on the name alone."""
    digest = hashlib.sha256(name.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if position < VALIDATION_SHARE else "train"


def standard_library_documents(split: Split, *, tests: bool = False) -> Iterator[LibraryText]:
    """Yield the documents of one split in name order.

    Args:
        split: The side of the hash split.
        tests: Yield the test packages instead of everything else.
    """
    names = _modules(tests=tests)
    for name in sorted(names):
        if split_of(name) == split and (text := _read_source(names[name])):
            yield LibraryText(name, text)
    if not tests:
        yield from (document for document in _topics() if split_of(document.name) == split)


def _modules(*, tests: bool) -> dict[str, Path]:
    """Return the files of the standard library's modules by dotted name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names: dict[str, Path] = {}
    for folder, below, files in os.walk(root):
        # Pruned, not filtered: site-packages may hold a hundred times as many files.
        below[:] = [name for name in below if name not in _EXCLUDED]
        package = Path(folder).relative_to(root).parts
        if bool(_TESTS & set(package)) == tests:
            names |= {".".join((*package, file[:-3])): Path(folder, file) for file in files if file.endswith(".py")}
    names.pop("pydoc_data.topics", None)  # read topic by topic
    return names


def _read_source(path: Path) -> str | None:
    """Return the file's text, or None where it is not text in its declared encoding (bad-syntax fixtures)."""
    try:
        with tokenize.open(path) as file:
            return file.read().strip() or None
    except (SyntaxError, UnicodeDecodeError, OSError):
        return None


def _topics() -> Iterator[LibraryText]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield LibraryText(f"pydoc_data.topics:{name}", topics[name].strip())
