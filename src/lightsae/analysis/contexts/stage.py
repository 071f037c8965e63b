"""Runs the streaming pass for several populations at once, on one pass of the language model, and takes it up again.

What has been counted is written down now and then, beside the target, under a name that says what was asked for: a pass
that was killed goes on there, and ends in what it would have ended in.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lightsae.analysis.contexts.statistics import ContextStatistics
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import Rows
from lightsae.formats.files import write_atomically
from lightsae.progress import Progress

SAVE_EVERY = 120.0  # seconds


class SavedPass:
    """Where the state of an unfinished pass lies.

    Args:
        target: The folder that the dictionary will be in.
        asked: Everything that the pass depends on, JSON values.
    """

    def __init__(self, target: Path, asked: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.path = target.absolute().with_name(f".{target.name}.pass-{digest}.npz")

    def load(self, statistics: Mapping[str, ContextStatistics]) -> int:
        """Go on from the saved state, and return how many batches it holds; 0 where there is none."""
        if not self.path.is_file():
            return 0
        with np.load(self.path) as saved:
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
    rows: Rows,
    saved: SavedPass,
    progress: Progress,
) -> None:
    """Take in all rows, from where a saved pass stopped.

    Args:
        statistics: Of each population, new.
        reader: Reads the rows.
        rows: The text of the contexts.
        saved: Where the state is kept until `clear`.
        progress: Told of every batch, in tokens.
    """
    done = saved.load(statistics)
    last_save, context = time.monotonic(), rows.tokens.shape[1]
    start = done * reader.reading.rows_at_once
    with (
        ThreadPoolExecutor(1, "counting") as counter,
        progress.stage("contexts, resumed" if done else "contexts", rows.tokens.size) as told,
    ):
        waiting: list[Any] = []
        for batch, counted in reader.batches(rows, start):
            work = [gathered.read(batch, counted) for gathered in statistics.values()]
            # One batch is counted while the next one is read; no more, so that memory stays bounded.
            for future in waiting:
                future.result()
            waiting = [counter.submit(count) for count in work]
            start += len(counted)
            told(start * context)
            if time.monotonic() - last_save > SAVE_EVERY:
                for future in waiting:
                    future.result()
                saved.save(statistics)
                last_save = time.monotonic()
        for future in waiting:
            future.result()
