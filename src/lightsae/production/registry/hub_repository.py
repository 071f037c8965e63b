"""A registry on the Hugging Face Hub: `hub:org/name`, a repository with the layout of the folder.

It is downloaded, changed as a folder is, and what is new is uploaded in one commit on top of the commit that was
downloaded: the Hub refuses it if somebody else wrote meanwhile, and a commit is there as a whole or not at all.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightsae.errors import ConfigError, arg
from lightsae.formats.files import hash_file
from lightsae.formats.hub import failure_of
from lightsae.production.registry.log import LOG, POINTER, read_state
from lightsae.production.registry.version import VERSIONS

PREFIX = "hub:"


def local_copy(registry: str | Path, *, channel: str | None = None) -> Path:
    """Return a folder to read a registry from: itself, or what was downloaded, which stays in the Hub's cache.

    Args:
        registry: Folder, or `hub:org/name`.
        channel: Download the version of this channel alone; None: all.

    Raises:
        ConfigError: The Hub cannot be reached, or has no such repository.
    """
    repository = _repository(registry)
    if repository is None:
        return Path(registry)
    import huggingface_hub

    files = None if channel is None else [LOG, POINTER]
    with _explained(registry):
        folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=files))
        if files and channel and (version := read_state(folder, str(registry)).has(channel)):
            more = [*files, f"{VERSIONS}/{version}/*"]
            # Into the same folder: it is named by the commit that the log was read from.
            huggingface_hub.snapshot_download(repository, revision=folder.name, allow_patterns=more)
        return folder


@contextmanager
def changing(registry: str | Path, message: str, *, begin: bool = False) -> Iterator[Path]:
    """Give a folder to change a registry in; for one on the Hub, the end of the block uploads what is new.

    Args:
        registry: Folder, or `hub:org/name`.
        message: What is done, for the commit.
        begin: Make a private repository if there is none.

    Raises:
        ConfigError: The Hub cannot be reached, refuses, or somebody else wrote meanwhile.
    """
    repository = _repository(registry)
    if repository is None:
        yield Path(registry)
        return
    import huggingface_hub

    api = huggingface_hub.HfApi()
    folder = Path(tempfile.mkdtemp(prefix="lightsae-registry-"))
    try:
        with _explained(registry):
            if begin:
                api.create_repo(repository, private=True, exist_ok=True)
            parent = api.repo_info(repository).sha
            huggingface_hub.snapshot_download(repository, revision=parent, local_dir=folder)
        before = _hashes(folder)
        yield folder
        new = [name for name, sha256 in _hashes(folder).items() if before.get(name) != sha256]
        if new:
            files = [huggingface_hub.CommitOperationAdd(name, folder / name) for name in new]
            with _explained(registry):
                api.create_commit(repository, files, commit_message=message, parent_commit=parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _repository(registry: str | Path) -> str | None:
    text = str(registry)
    if not text.startswith(PREFIX):
        return None
    repository = text.removeprefix(PREFIX)
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ConfigError("registry", text, f"write {PREFIX}ORGANISATION/NAME")
    return repository


def _hashes(folder: Path) -> dict[str, str]:
    """Hash the registry's files; hidden ones are of the download, the lock, or a write that was cut short."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {n.as_posix(): hash_file(folder / n) for n in names if not any(part.startswith(".") for part in n.parts)}


@contextmanager
def _explained(registry: str | Path) -> Iterator[None]:
    """Turn a failure of the Hub, or of the way to it, into a ConfigError."""
    try:
        yield
    except Exception as error:
        # Which library speaks HTTP, and so the classes of its errors, has changed between versions of huggingface_hub.
        of_the_hub = type(error).__module__.startswith(("huggingface_hub", "httpx", "requests"))
        if not of_the_hub and not isinstance(error, OSError):
            raise
        raise ConfigError(f"{arg('registry')} is {str(registry)!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    _, status, line = failure_of(error)
    if status in (409, 412):
        return "somebody else wrote to it meanwhile, and nothing was changed; run the command again."
    if status in (401, 403, 404):
        return "the Hub has no such repository that you may read or write; log in with: hf auth login"
    return f"the Hub cannot be reached, or refused: {line}"
