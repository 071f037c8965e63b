"""Where documents come from: the Hub, local files, a `save_to_disk` folder, or the built-in corpus."""

import glob
import hashlib
import os
import sys
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from lightsae.activations.contents import digest, digests_of_files
from lightsae.activations.corpus.builtin import standard_library_documents
from lightsae.activations.corpus.documents import DocumentSource, HeldOutShare, PartsSource, Split, whole
from lightsae.activations.corpus.folder import find_files
from lightsae.activations.corpus.hub import SplitKey, check_hub, open_hub
from lightsae.activations.corpus.suffixes import kind_of
from lightsae.activations.corpus.text_files import file_part, table_part
from lightsae.activations.settings import DataSettings
from lightsae.errors import CorpusError, arg, did_you_mean, reading
from lightsae.formats.files import natural_order

BUILTIN = "builtin"


def open_documents(settings: DataSettings, split: Split) -> DocumentSource:
    """Return the documents of one side of the corpus. A Hub dataset that is not streamed is downloaded here.

    Raises:
        CorpusError: The corpus is not there, is empty, or lacks the split or the column.
    """
    if settings.text == BUILTIN:
        _only_for(settings, "builtin", "dataset_config", "dataset_revision", "dataset_split", "validation_split")

        @cache
        def texts() -> list[str]:
            return [document.text for document in standard_library_documents(split)]

        return PartsSource(
            [lambda offset: zip(texts()[offset:], count(offset + 1))],
            f"builtin (standard library of Python {sys.version.split()[0]})",
            lambda: {"the standard library": digest(text.encode("utf-8", "surrogatepass") for text in texts())},
        )
    named = split == "validation" and settings.validation_split is not None
    source = _open_named(settings, "validation_split" if named else "dataset_split")
    return source if settings.validation_split else HeldOutShare(source, split, settings.validation_fraction)


def check_corpus(settings: DataSettings) -> None:
    """Check that the corpus is there, is not empty and has the column; downloads nothing, reads a few documents.

    Raises:
        CorpusError: As `open_documents`.
    """
    if settings.text == BUILTIN:
        open_documents(settings, "train")
        return
    if not _is_saved(settings.text) and not _is_local(settings.text):
        check_hub(settings)
        return
    splits: list[Split] = ["train", "validation"] if settings.validation_split else ["train"]
    for split in splits:
        source = open_documents(settings, split)
        if source.read() is None:
            raise CorpusError(no_text(settings, split))
        source.close()


def no_text(settings: DataSettings, split: Split) -> str:
    """Return the message for a split without any document."""
    return (
        f"{arg('dataset')} is {settings.dataset!r}, and there is no text in its {split} split "
        f"({arg('text_column')} {settings.text_column!r})."
    )


def _open_named(settings: DataSettings, key: SplitKey) -> DocumentSource:
    """Open the whole split that the setting `key` names."""
    if _is_saved(settings.text):
        _only_for(settings, "a local dataset", "dataset_config", "dataset_revision")
        return _open_saved(settings, key)
    if _is_local(settings.text):
        _only_for(settings, "local files", "dataset_config", "dataset_revision", "dataset_split")
        name = settings.validation_split if key == "validation_split" else settings.text
        assert name
        return _open_files(name, settings.text_column, arg("validation_split" if name != settings.text else "dataset"))
    return open_hub(settings, key)


def _only_for(settings: DataSettings, what: str, *keys: str) -> None:
    for key in keys:
        if (value := getattr(settings, key)) != getattr(DataSettings, key):
            raise CorpusError(f"{arg(key)} is {value!r}, but {arg('dataset')} is {what}, which has none. Leave it out.")


def _is_saved(name: str) -> bool:
    folder = Path(name).expanduser()
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _is_local(name: str) -> bool:
    """Whether the name means files: it exists, or it is written like a path, a glob or a file name."""
    written_so = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or kind_of(Path(name)) is not None
    return written_so or glob.has_magic(name) or Path(name).expanduser().exists()


def _open_saved(settings: DataSettings, key: SplitKey) -> DocumentSource:
    import datasets

    folder = Path(settings.text).expanduser().resolve()
    with reading(CorpusError, f"{arg('dataset')} is {settings.dataset!r}, a saved dataset that cannot be read"):
        table: Any = datasets.load_from_disk(str(folder))
    fingerprint = folder.name
    if isinstance(table, datasets.DatasetDict):
        name = getattr(settings, key)
        if name not in table:
            raise CorpusError(
                f"{arg(key)} is {name!r}, but {folder.name} has {', '.join(map(repr, table))}."
                + did_you_mean(name, table)
            )
        table = table[name]
        fingerprint = f"{folder.name} [{name}]"
    else:
        _only_for(settings, "a single saved split", "dataset_split", "validation_split")
    sizes = {path: path.stat().st_size for path in (Path(file["filename"]) for file in table.cache_files)}
    return PartsSource(
        [table_part(table, settings.text_column, fingerprint, sizes)],
        f"{fingerprint}: {len(table)} rows, {table._fingerprint}",
        lambda: digests_of_files(sizes, folder),
    )


def _open_files(name: str, text_column: str, key: str) -> DocumentSource:
    root, files = find_files(name, key)
    files = sorted(files, key=lambda path: natural_order(path.relative_to(root)))
    sizes = [path.stat().st_size for path in files]
    if not any(sizes):
        raise CorpusError(f"{key} is {name!r}, which is empty.")
    listing = "".join(f"{path.relative_to(root).as_posix()}\t{size}\n" for path, size in zip(files, sizes, strict=True))
    names = hashlib.sha256(listing.encode()).hexdigest()[:12]
    label = files[0].name if len(files) == 1 else f"{root.resolve().name}: {len(files)} files"
    return PartsSource(
        [
            whole(file_part(path, text_column, alone=len(files) == 1), {path: size})
            for path, size in zip(files, sizes, strict=True)
            if size
        ],
        f"{label}, {sum(sizes)} bytes, {names}",
        lambda: digests_of_files(files, root),
    )
