"""The registry's folder: opened for reading or for writing, and its versions found by the beginning of their ids."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightsae.errors import ConfigError, FormatError, arg, did_you_mean, under
from lightsae.formats.files import explain_os_errors, locate
from lightsae.production.registry.hub_repository import changing, local_copy
from lightsae.production.registry.log import CHANNELS, LOG, POINTER, State, read_state
from lightsae.production.registry.version import SHORT, VERSIONS

LOCK = ".lock"
# Fewest digits that name a version.
_FEWEST = 4


def open_registry(registry: str | Path, *, channel: str | None = None) -> tuple[Path, State]:
    """Return the folder of a registry (see `local_copy`), and its state. Nothing is written, and no lock is needed.

    Raises:
        FormatError: There is none, or its log was changed.
    """
    where = locate_registry(local_copy(registry, channel=channel))
    return where, read_state(where, str(registry))


def locate_registry(registry: str | Path) -> Path:
    """Return where a registry is; raise FormatError if there is none."""
    with under(folder="registry"):
        where = locate(registry, POINTER)
    if not any((where / name).exists() for name in (POINTER, LOG, VERSIONS)):
        raise FormatError(
            f"{str(registry)!r} is no registry; begin one: lightsae registry publish DICTIONARY --sae SAE --registry "
            f"{registry}"
        )
    return where


@contextmanager
def writing(registry: str | Path, message: str = "", *, begin: bool = False) -> Iterator[tuple[Path, State]]:
    """Keep other writers away while a registry is changed (see `changing`); gives its folder and its state.

    Raises:
        ConfigError: Another process writes, or there is no permission to.
        FormatError: There is no registry, or its log was changed.
    """
    with changing(registry, message, begin=begin) as where:
        if begin:
            _check_can_begin(where)
            with explain_os_errors(where):
                where.mkdir(parents=True, exist_ok=True)
        else:
            where = locate_registry(where)
        with explain_os_errors(where):
            lock = (where / LOCK).open("a")
        with lock:
            try:
                # The system lets go of it when the process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(f"Another process is writing to the registry {str(where)!r}; try again.") from error
            state = read_state(where, str(registry))
            # Nobody else writes: these are of a process that was killed.
            for staged in (where / VERSIONS).glob(".partial-*"):
                shutil.rmtree(staged, ignore_errors=True)
            yield where, state


def find_version(where: Path, state: State, text: str) -> str:
    """Return the id of the published version that begins with a text.

    Raises:
        ConfigError: There is none, or there are several; or its publishing was cut short.
    """
    start = text.strip().lower()
    known = [v for v in state.published if v.startswith(start)] if len(start) >= _FEWEST else []
    if len(known) == 1:
        return known[0]
    if known:
        listed = ", ".join(v[: SHORT + 8] for v in known)
        raise ConfigError("version", text, f"{len(known)} begin with it: {listed}; write more digits")
    if len(start) >= _FEWEST and any(v.startswith(start) for v in unpublished(where, state)):
        raise ConfigError("version", text, "its publishing was cut short; publish it again")
    near = did_you_mean(start[:SHORT], [v[:SHORT] for v in state.published])
    raise ConfigError(f"{arg('version')} is {text!r}, which is not published.{near} List them: lightsae registry list")


def unpublished(where: Path, state: State) -> list[str]:
    """Return folders of versions that the log does not know: their publishing was cut short."""
    names = sorted(path.name for path in (where / VERSIONS).glob("[!.]*"))
    return [name for name in names if name not in state.published]


def check_channel(channel: str) -> None:
    """Raise ConfigError if there is no channel of that name."""
    if channel not in CHANNELS:
        advice = f"write {' or '.join(CHANNELS)}.{did_you_mean(channel, CHANNELS)}"
        raise ConfigError(f"{arg('channel')} is {channel!r}; {advice}")


def _check_can_begin(where: Path) -> None:
    if where.exists() and not where.is_dir():
        raise ConfigError("registry", str(where), "it is a file; name a folder")
    if not where.is_dir() or any((where / name).exists() for name in (POINTER, VERSIONS)):
        return
    if others := sorted(p.name for p in where.iterdir() if not p.name.startswith(".") and p.name != "README.md"):
        raise ConfigError(
            f"{arg('registry')} is {str(where)!r}, which holds other files ({others[0]!r}); name a folder of its own."
        )
