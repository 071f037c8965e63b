"""Runs the streaming pass for several populations at once, on one pass of the language model, and takes it up again.

What has been counted is written down now and then, beside the target, under a name that says what was asked for: a pass
that was killed goes on there, and ends in what it would have ended in.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lightsae.analysis.contexts.statistics import ContextStatistics
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import TextRows
from lightsae.errors import FormatError, reading
from lightsae.formats.files import write_atomically
from lightsae.progress import Progress

SAVE_EVERY = 120.0  # seconds


class SavedPass:
    """Where the state of an unfinished pass lies.

    Args:
        target: The folder that the feature dictionary will be in.
        asked: Everything that the pass depends on, JSON values.
    """

    def __init__(self, target: Path, inputs: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.path = target.absolute().with_name(f".{target.name}.pass-{digest}.npz")

    def load(self, statistics: Mapping[str, ContextStatistics]) -> int:
        """Go on from the saved state, and return how many batches it holds; 0 where there is none.

        Raises:
            FormatError: It is damaged.
        """
        if not self.path.is_file():
            return 0
        what = f"{str(self.path)!r}, in which a pass was kept that was stopped, cannot be read"
        with (
            reading(FormatError, what, "delete it, and the pass begins anew"),
            self.path.open("rb") as file,
            np.load(file, allow_pickle=False) as saved,
        ):
            for name, gathered in statistics.items():
                prefix = f"{name}/"
                gathered.load({key.removeprefix(prefix): saved[key] for key in saved.files if key.startswith(prefix)})
        return next(iter(statistics.values())).batches

    def save(self, statistics: Mapping[str, ContextStatistics]) -> None:
        arrays = {f"{name}/{key}": a for name, gathered in statistics.items() for key, a in gathered.state().items()}
        with write_atomically(self.path) as staged:
            np.savez(staged, allow_pickle=False, **arrays)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


def gather_contexts(
    statistics: Mapping[str, ContextStatistics],
    reader: ActivationReader,
    rows: TextRows,
    saved: SavedPass,
    progress: Progress,
) -> None:
    """Take in all rows, from where a saved pass stopped.

    Args:
        statistics: By population, new.
        reader: Reads the rows.
        rows: The text of the contexts.
        saved: Where the state is kept until `clear`.
        progress: Receives the tokens read.
    """
    batches_done, last_save = saved.load(statistics), time.monotonic()
    stage = "contexts, resumed" if batches_done else "contexts"
    with ThreadPoolExecutor(1, "counting") as counter:
        waiting: list[Future[None]] = []
        for batch, counted in reader.read(rows, stage, progress, batches_done * reader.reading.rows_at_once):
            work = [gathered.read(batch, counted) for gathered in statistics.values()]
            # One batch is counted while the next one is read; no more, so that memory stays bounded.
            _finish(waiting)
            waiting = [counter.submit(count) for count in work]
            if time.monotonic() - last_save > SAVE_EVERY:
                _finish(waiting)
                saved.save(statistics)
                last_save = time.monotonic()
        _finish(waiting)


def _finish(waiting: Iterable[Future[None]]) -> None:
    for future in waiting:
        future.result()
