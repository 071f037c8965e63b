"""One run, one folder: while a process trains or validates in it, no other one does, and it is not taken away."""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lightsae.callbacks.base import run_folder
from lightsae.compat import writes_files
from lightsae.errors import ConfigError
from lightsae.formats.files import explain_os_errors, shown

NAME = ".lock"


class RunLock(Callback):
    """Holds the run's folder, and stops the run where somebody has removed it. Observes only.

    The lock is the system's, on a file in the folder: it ends with the process, however that ends.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._handle: int | None = None

    @contextmanager
    def held(self, trainer: Trainer) -> Iterator[None]:
        """Hold the run's folder while a command runs; the first process of several holds it for all.

        Raises:
            ConfigError: Another process holds it; or it cannot be written to.
        """
        folder = run_folder(trainer)
        if not writes_files(trainer):
            yield
            return
        self._path = folder.absolute() / NAME
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = self._take(folder)
        hook = threading.excepthook
        threading.excepthook = lambda failure: hook(failure) if self._is_there() else None
        try:
            yield
        except Exception:
            # Without its folder a logger fails in many ways, in threads of its own too.
            self._check()
            raise
        finally:
            threading.excepthook = hook
            if self._is_there():
                self._path.unlink()
            os.close(self._handle)
            self._handle = None

    def _take(self, folder: Path) -> int:
        assert self._path is not None
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    os.close(handle)
                    raise ConfigError(
                        f"Another process is running in {shown(folder)}; wait for its end, stop it, or start a new run."
                    ) from None
                # Some network file systems have no locks.
            self._handle = handle
            if self._is_there():
                return handle
            os.close(handle)  # its holder ended, and removed it, between the two calls

    def _is_there(self) -> bool:
        """Return whether the file that is held is the one that stands in the folder."""
        assert self._path is not None
        assert self._handle is not None
        try:
            return os.path.samestat(os.stat(self._path, follow_symlinks=False), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        self._check()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check()

    def _check(self) -> None:
        if self._handle is not None and not self._is_there():
            assert self._path is not None
            folder = shown(self._path.parent)
            raise ConfigError(f"{folder}, the run's folder, was removed during the run.") from None
