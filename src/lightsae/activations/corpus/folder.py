"""Which files a name means: one file, or those of a folder or a pattern that make the corpus."""

import glob
import os
from collections import defaultdict
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from lightsae.activations.corpus.suffixes import kind_of, named_suffixes
from lightsae.errors import CorpusError, did_you_mean, listed

# Of the files that are left out, so many are named.
_NAMED = 3


def find_files(name: str, key: str) -> tuple[Path, list[Path]]:
    """Return the folder that file names are given relative to, and the files, in no order.

    Of the kinds of files in a folder the one with the most bytes is the corpus: a licence beside the data, or the one
    .json that describes it, is none. What is left out is said.

    Args:
        name: A file, a folder or a pattern.
        key: What the setting is called in an error.

    Raises:
        CorpusError: There is nothing of that name, or nothing in it that can be read.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if kind_of(path) is None:
            raise CorpusError(f"{key} is {name!r}; it must end in {named_suffixes()}, or be a folder or a glob.")
        return path.parent, [path]
    if path.is_dir():
        root, paths = path, list(path.rglob("*"))
        what = f"a folder without {named_suffixes()} files"
    elif glob.has_magic(name):
        paths = [Path(match) for match in glob.glob(str(path), recursive=True)]
        root = Path(os.path.commonpath([match.parent for match in paths])) if paths else path
        what = f"a pattern that matches no {named_suffixes()} file"
    else:
        parent = path.parent
        known = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        missing = "does not exist" if parent.is_dir() else f"does not exist: there is no folder {str(parent)!r}"
        raise CorpusError(f"{key} is {name!r}, which {missing}.{did_you_mean(path.name, known)}")
    by_kind: dict[str, list[Path]] = defaultdict(list)
    for found in paths:
        hidden = any(part.startswith(".") for part in found.relative_to(root).parts)
        if not hidden and (kind := kind_of(found)) is not None and found.is_file():
            by_kind[kind].append(found)
    if not by_kind:
        raise CorpusError(f"{key} is {name!r}, {what}.")
    chosen = by_kind.pop(max(by_kind, key=lambda kind: sum(path.stat().st_size for path in by_kind[kind])))
    if left_out := sorted(path.name for files in by_kind.values() for path in files):
        read = f"{len(chosen)} files such as {min(chosen).name}" if len(chosen) > 1 else chosen[0].name
        rank_zero_warn(
            f"{name}: {read} are the corpus; left out: {listed(left_out, _NAMED)}. "
            "Name others by a pattern (folder/*.txt)."
        )
    return root, chosen
