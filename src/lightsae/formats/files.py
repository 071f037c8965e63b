"""Writing files and folders so that a reader never meets half of one, and reading what they say of themselves.

What is written goes first to a hidden name beside the target (same file system, so that renaming is atomic), is flushed
to the disk, and then takes the target's name. Each writer has a name of its own, so that of two the last one wins,
whole; what a killed process leaves behind, the next write of the same target clears away.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightsae.errors import ConfigError, FormatError, arg, did_you_mean
from lightsae.formats.temporary import alone_in, clear_leftovers, create, unused_name
from lightsae.parsing import read_json as read_bounded_json

_MEANING = {
    errno.ENOSPC: "no space is left on the disk; free some, or choose another folder.",
    errno.EDQUOT: "your disk quota is used up; free some space, or choose another folder.",
    errno.EFBIG: "the file would be larger than the system allows; choose a folder on another file system.",
    errno.EACCES: "there is no permission to write there; choose another folder, or change its permissions.",
    errno.EPERM: "there is no permission to write there; choose another folder, or change its permissions.",
    errno.EROFS: "the file system is read-only; choose another folder.",
    errno.EEXIST: "a part of this path is a file, not a folder; choose another folder.",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder.",
}


@contextmanager
def explain_os_errors(path: str | Path) -> Iterator[None]:
    """Turn a failure to write (full disk, no permission, ...) inside the block into a ConfigError that names `path`.

    Other errors pass unchanged. Libraries that write through compiled code hide the system's error in a chain or in a
    text; it is found there.

    Args:
        path: The target as the user wrote it.
    """
    try:
        yield
    except Exception as error:
        meaning = _MEANING.get(_error_number(error) or 0)
        if meaning is None:
            raise
        raise ConfigError(f"Cannot write {str(path)!r}: {meaning}") from error


@contextmanager
def write_atomically(path: str | Path, *, within: Path | None = None) -> Iterator[Path]:
    """Give a temporary path to write a file to; at the end of the block the file takes the name `path`.

    If the block fails, or the process is killed, `path` keeps what it held. Missing parent folders are made.

    Args:
        path: The target file.
        within: A folder on the target's file system for the temporary file, for libraries that write to files of their
            own beside it; see `scratch_folder`. None: it is beside the target.

    Yields:
        The temporary path; its suffix is the target's.

    Raises:
        ConfigError: The disk is full, or there is no permission to write.
    """
    target = Path(os.path.abspath(path))
    temporary = unused_name(target if within is None else within / target.name)
    with explain_os_errors(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target)
        create(temporary)
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, target)
            _flush(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden empty folder in another one until the end of the block; it goes with all that is in it.

    One that a killed process left goes with the next that is made.
    """
    scratch = unused_name(folder / "scratch")
    with explain_os_errors(folder):
        clear_leftovers(folder / "scratch")
        scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: str | Path, value: Any, *, indent: int = 2, finite: bool = True, ascii_only: bool = False) -> None:
    """Write a JSON file atomically; see `write_atomically`.

    Args:
        path: The target file.
        value: What JSON can hold.
        indent: Spaces per level.
        finite: Whether a NaN or an infinity is a mistake; Python writes them in its own way.
        ascii_only: Write other letters as escapes: for paths, which may hold bytes that are no text.

    Raises:
        ConfigError: The disk is full, or there is no permission to write.
    """
    with write_atomically(path) as temporary:
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=not finite)
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def replace_folder_atomically(folder: str | Path) -> Iterator[Path]:
    """Give an empty temporary folder to fill; at the end of the block it takes the place of `folder`.

    Whatever `folder` held is deleted. If the block fails, `folder` keeps what it held. There is no portable way to swap
    two folders in one call, so that a kill between the two renamings leaves the old one under a hidden name:
    `find_folder` looks there too.

    Args:
        folder: The target folder; missing parents are made.

    Yields:
        The temporary folder.

    Raises:
        ConfigError: The disk is full, or there is no permission to write.
    """
    target, old = Path(os.path.realpath(folder)), _set_aside(folder)
    staged = unused_name(target)
    with explain_os_errors(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target)
        try:
            staged.mkdir()
            yield staged
            for path in sorted(staged.rglob("*"), reverse=True):
                _flush(path)
            _flush(staged)
            with alone_in(target.parent):
                _swap(staged, target, old)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            with alone_in(target.parent):
                if old.exists() and not target.exists():
                    os.rename(old, target)
            raise


def _swap(staged: Path, target: Path, old: Path) -> None:
    if target.exists():
        # While the target stands, what is set aside is older than it.
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(staged, target)
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def find_folder(folder: str | Path) -> Path | None:
    """Return where the contents of `folder` are: there, or set aside by a replacement that was killed, or nowhere."""
    return next((path for path in (Path(folder), _set_aside(folder)) if path.is_dir()), None)


def locate(folder: str | Path, holds: str) -> Path:
    """Return where the contents of `folder` are, as `find_folder`, or say which folder was probably meant.

    Args:
        folder: As the user wrote it.
        holds: The file that such a folder has, for the message.

    Raises:
        FormatError: There is no such folder.
    """
    path_there = find_folder(folder)
    if path_there is not None:
        return path_there
    path = Path(folder)
    if path.exists():
        raise FormatError("folder", str(folder), f"that is a file; name the folder that holds {holds!r}")
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    near = did_you_mean(path.name, siblings)
    raise FormatError(f"{arg('folder')} is {str(folder)!r}, which does not exist.{near}")


def entries(folder: str | Path, purpose: str) -> list[Path]:
    """Return what a folder that is to be replaced holds, by name; nothing if it does not exist yet.

    Args:
        folder: As the user wrote it.
        purpose: What the folder is for, for the message: "to save the SAE in".

    Raises:
        FormatError: It is a file.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise FormatError(f"{str(folder)!r} is a file; name a folder {purpose}.")
    path = find_folder(folder)
    return sorted(path.iterdir()) if path is not None else []


def natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts chunk_2 before chunk_10.

    >>> sorted(["chunk_10.txt", "chunk_2.txt"], key=lambda name: natural_order(Path(name)))
    ['chunk_2.txt', 'chunk_10.txt']
    """
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file.

    >>> hash_file(Path(os.devnull))[:12]  # nothing
    'e3b0c44298fc'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(folder: str | Path, name: str, otherwise: str, again: str, *, finite: bool = True) -> dict[str, Any]:
    """Read the JSON object by which a folder says what it holds.

    Args:
        folder: As the user wrote it.
        name: The file in it.
        otherwise: What to do if there is no such file, neither there nor in a folder below.
        again: What to do about damage: "export it again".
        finite: As in `parsing.parse_json`.

    Raises:
        FormatError: The folder or the file is missing, or is no JSON object.
    """
    path, written = locate(folder, name), str(Path(folder, name))
    try:
        description = read_bounded_json(path / name, finite=finite)
    except FileNotFoundError as error:
        # Somebody may name the run's folder for what lies in it.
        below = sorted(p.parent for pattern in ("*", "*/*") for p in path.glob(f"{pattern}/{name}"))
        hint = f"Did you mean {str(below[0])!r}?" if below else otherwise
        raise FormatError(f"{str(folder)!r} has no {name!r}. {hint}") from error
    except ValueError as error:
        raise FormatError(f"{written!r} is not valid JSON ({error}); {again}.") from error
    if not isinstance(description, dict):
        raise FormatError(f"{written!r} holds a {type(description).__name__}, where an object should be; {again}.")
    return description


def check_version(description: Mapping[str, Any], shown: str, field: str, newest: int, again: str) -> None:
    """Refuse a description that a newer lightsae wrote; see `check_fields`."""
    check_fields(description, shown, {field: int}, again)
    if description[field] > newest:
        raise FormatError(
            f"{shown!r} has {field.replace('_', ' ')} {description[field]}, and this lightsae reads up to {newest}: "
            "pip install --upgrade lightsae"
        )


def check_fields(description: Mapping[str, Any], shown: str, fields: Mapping[str, type], again: str) -> None:
    """Refuse a description in which a field is missing or of another type.

    Args:
        description: What `read_json` read.
        shown: The file as the user would write it.
        fields: The types of the fields.
        again: As in `read_json`.
    """
    for name, kind in fields.items():
        value = description.get(name)
        if not isinstance(value, kind):
            problem = "is missing" if value is None else f"is {value!r}"
            raise FormatError(f"{shown!r}: {name!r} {problem}, where a {kind.__name__} should be; {again}.")


def _set_aside(folder: str | Path) -> Path:
    target = Path(os.path.realpath(folder))
    return target.with_name(f".previous-{target.name}")


def _flush(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot flush a folder.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def _error_number(error: BaseException | None) -> int | None:
    """Return the system's number of the error that started it all, or None."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            return int(number[1])
        error = error.__cause__ or error.__context__
    return None


def shown(path: str | Path) -> str:
    """Return a path as a person in this folder would write it."""
    relative = os.path.relpath(path) if path else ""
    return str(path) if relative.startswith("..") else relative
