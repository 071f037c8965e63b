"""Names for what is being written beside its target: no other writer's, and known again once its writer was killed."""

import fcntl
import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Several machines may write to one disk, each with process numbers of its own.
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"


def unused_name(target: Path) -> Path:
    """Return a hidden name beside a target, with its suffix, that no other writer takes."""
    return target.with_name(f".partial-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}-{target.name}")


def create(path: Path) -> None:
    """Make an empty file where nothing is, not even a link to somewhere else."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))


def clear_leftovers(target: Path) -> None:
    """Remove what writers of a target left behind that were killed on this machine."""
    # Version 0.1 had one name for all writers.
    name = re.compile(rf"\.partial-(?:{_HOST}-(\d+)-[0-9a-f]+-)?{re.escape(target.name)}")
    for path in target.parent.glob(".partial-*"):
        found = name.fullmatch(path.name)
        if found is None or (found[1] is not None and _is_running(int(found[1]))):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other writer swaps folders in this one, and keep others waiting until the end of the block."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
