"""Several processes that train together: where one ends before its time, all of them end, and one says so."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer

from lightsae.compat import child_processes, without_observer

# What collectives raise where a process at the other end is gone.
_GONE = re.compile(r"gloo|nccl|peer|process group", re.IGNORECASE)
# A process that waits in a collective is told of it at once by gloo, and never by NCCL: then it is ended from outside.
_SECONDS_TO_SAY_WHY = 30.0
LOST = "Another process of this run ended, and the run cannot go on without it."


def is_lost(trainer: Trainer, error: BaseException) -> bool:
    """Return whether an error says that another process of the run has ended."""
    return trainer.world_size > 1 and isinstance(error, RuntimeError) and bool(_GONE.search(str(error)))


def speaks(trainer: Trainer, parent: int) -> bool:
    """Return whether this process is the one that says that another one has ended.

    Rank 0 does, unless the other one had a message of its own. Where rank 0 is gone, the first of the others does.

    Args:
        trainer: Of the run.
        parent: What started this process: rank 0, where this is none.
    """
    if not trainer.is_global_zero:
        return trainer.local_rank == 1 and os.getppid() != parent
    end = time.monotonic() + 5
    while child_processes(trainer) and time.monotonic() < end:
        codes = [process.poll() for process in child_processes(trainer)]
        if any(code is not None for code in codes):
            return 2 not in codes  # the exit code of a message
        time.sleep(0.05)
    return True


@contextmanager
def ending_together(trainer: Trainer, parent: int) -> Iterator[None]:
    """Watch over the other processes while a command runs; with a single process there is nothing to watch.

    Args:
        trainer: Of the run.
        parent: What started this process.
    """
    if trainer.world_size == 1:
        yield
        return
    done = threading.Event()
    threading.Thread(target=_watch, args=(trainer, parent, done), name="lightsae-processes", daemon=True).start()
    try:
        with without_observer():
            yield
    except BaseException:
        # They wait for this one, and would have nothing to add.
        for process in child_processes(trainer):
            process.send_signal(signal.SIGKILL)
        raise
    finally:
        done.set()


def _watch(trainer: Trainer, parent: int, done: threading.Event) -> None:
    while not done.wait(1.0):
        is_child = not trainer.is_global_zero and "LOCAL_RANK" in os.environ
        if any(process.poll() for process in child_processes(trainer)) or (is_child and os.getppid() != parent):
            if done.wait(_SECONDS_TO_SAY_WHY):
                return
            for process in child_processes(trainer):
                process.send_signal(signal.SIGKILL)
            print(f"lightsae: error: {LOST}", file=sys.stderr, flush=True)
            os._exit(2)
