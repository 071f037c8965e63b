"""What the data of a run held, so that a run which goes on notices where it has changed."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lightsae.errors import CorpusError, arg, listed

# A digest of each part of the data (a file, by its name), by the setting that names the data.
Contents = dict[str, dict[str, str]]

# Of all files together, about so many bytes are read: all of small ones, of large ones blocks from all over them.
_READ_OF_ALL = 1 << 26
_LEAST_OF_ONE = 1 << 12
_BLOCKS = 16
# With more files than this, they have one digest: a checkpoint is no index.
_NAMED = 64


def digest(parts: Iterable[bytes]) -> str:
    """Return a digest of some bytes."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def digests_of_files(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Return a digest of each file by its name below `root`; of many files, one of them all.

    Raises:
        OSError: A file cannot be read.
    """
    files = list(paths)
    sizes = [path.stat().st_size for path in files]
    most = max(_READ_OF_ALL // max(1, len(files)), _LEAST_OF_ONE) if sum(sizes) > _READ_OF_ALL else _READ_OF_ALL
    found = {
        path.relative_to(root).as_posix(): digest(_sample(path, size, most))
        for path, size in zip(files, sizes, strict=True)
    }
    if len(found) <= _NAMED:
        return found
    return {f"{len(found)} files": digest(f"{name}\t{held}\n".encode() for name, held in found.items())}


def sampled_digest(path: Path, most: int) -> str:
    """Return a digest of a file's size and of at most `most` of its bytes, in blocks from all over it.

    Raises:
        OSError: The file cannot be read.
    """
    return digest(_sample(path, path.stat().st_size, most))


def _sample(path: Path, size: int, most: int) -> Iterable[bytes]:
    yield str(size).encode()
    with path.open("rb") as file:
        if size <= most:
            yield file.read()
            return
        block = most // _BLOCKS
        for start in np.linspace(0, size - block, _BLOCKS).astype(int).tolist():
            file.seek(start)
            yield file.read(block)


def check_unchanged(stored: Mapping[str, Mapping[str, str]], present: Contents) -> None:
    """Hold the data against what a checkpoint says of it. One from before it said so is taken, with a warning.

    Raises:
        CorpusError: Something has changed.
    """
    for setting, now in present.items():
        before = stored.get(setting)
        if before is None:
            rank_zero_warn(f"The checkpoint does not tell what {setting} held: whether it has changed is not checked.")
            continue
        changed = sorted(name for name in {**before, **now} if before.get(name) != now.get(name))
        if changed:
            raise CorpusError(
                f"{arg(setting)}: what {listed(changed, 3)} held has changed since the checkpoint was written. "
                "Resume with the same data, or start a new run."
            )
