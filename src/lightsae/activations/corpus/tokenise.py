"""Tokenise chunks of documents, in order, in worker processes or in this one; the ids are the same either way.

Workers are plain subprocesses that run `tokenise_worker.py` over pipes. Compared with `multiprocessing` that leaves the
caller's main module, torch, semaphores and the resource tracker out of it. One thread a worker keeps its pipe moving.
"""

import os
import pickle
import queue
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.corpus import tokenise_worker
from lightsae.activations.corpus.tokenise_worker import Encode, Encoded, encode_documents, load_encoder
from lightsae.errors import CorpusError, arg

# Chunks in flight for each worker: one that it works on and one that waits, so that it never idles.
_CHUNKS_PER_WORKER = 2

Ids = NDArray[np.int32]


class Tokeniser:
    """Turns lists of texts into token ids, `num_workers` lists at a time.

    Processes start at the first `submit`. At most `depth` chunks should be in flight; the caller keeps their order by
    asking for the results in the order in which it submitted.
    """

    def __init__(self, tokenizer: Any, num_workers: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._setup: tuple[str, Any] = ("fast", backend.to_str()) if backend else ("pickled", pickle.dumps(tokenizer))
        self._num_workers = num_workers
        self._encode: Encode | None = None
        self._pool: _Pool | None = None
        self.depth = 1 + _CHUNKS_PER_WORKER * num_workers

    def submit(self, documents: list[str]) -> Callable[[], tuple[Ids, list[int]]]:
        """Begin with a chunk, and return a function that waits for its ids and the number of ids of each document.

        Raises:
            CorpusError: From the returned function: a worker died, or the tokenizer failed.
        """
        if self._num_workers:
            self._pool = self._pool or _Pool(self._num_workers, *self._setup)
            future = self._pool.submit(documents)
            return lambda: _as_array(future.result())
        self._encode = self._encode or load_encoder(*self._setup)
        encoded = encode_documents(self._encode, documents)
        return lambda: _as_array(encoded)

    def close(self) -> None:
        """End the worker processes. A later `submit` starts new ones."""
        if self._pool:
            self._pool.close()
            self._pool = None


def _as_array(encoded: Encoded) -> tuple[Ids, list[int]]:
    return np.frombuffer(encoded[0], dtype=np.int32), encoded[1]


class _Worker:
    """One process and its two pipes."""

    def __init__(self, kind: str, payload: Any) -> None:
        # -P: the package's own folder must not come first on the path of the worker.
        self.process = subprocess.Popen(
            [sys.executable, "-P", tokenise_worker.__file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # a Ctrl-C in the terminal is for the parent alone
        )
        path = [str(Path(entry).absolute()) for entry in sys.path]
        self._setup: tuple[list[str], str, Any] | None = (path, kind, payload)

    def tokenise(self, documents: list[str]) -> Encoded:
        assert self.process.stdin
        assert self.process.stdout
        try:
            if self._setup:
                pickle.dump(self._setup, self.process.stdin, protocol=5)
                self._setup = None
            pickle.dump(documents, self.process.stdin, protocol=5)
            self.process.stdin.flush()
            answer = pickle.load(self.process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            raise CorpusError(
                f"A tokeniser process died (exit code {self._exit_code()}; -9 is usually a lack of memory). "
                f"Set {arg('num_workers')} to fewer, or to 0 to tokenise in the main process."
            ) from None
        if answer[0] == "error":
            raise CorpusError(
                f"The tokenizer failed in a worker process: {answer[1]}. See it with {arg('num_workers')}: 0."
            )
        return answer[1], answer[2]

    def _exit_code(self) -> int:
        try:
            return self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:  # alive, but what it wrote was no answer
            self.process.kill()
            return self.process.wait()

    def end(self) -> None:
        self.process.kill()  # it holds nothing worth keeping
        self.process.wait()


class _Pool:
    """Worker processes and the threads that wait on their pipes."""

    def __init__(self, num_workers: int, kind: str, payload: Any) -> None:
        self._workers = [_Worker(kind, payload) for _ in range(num_workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="tokenise")
        # Also when nobody calls close(): no process outlives the pool or the interpreter.
        self._end = weakref.finalize(self, _end_all, self._workers, self._threads)

    def submit(self, documents: list[str]) -> Future[Encoded]:
        return self._threads.submit(_run, self._idle, documents)

    def close(self) -> None:
        self._end()


def _run(idle: "queue.SimpleQueue[_Worker]", documents: list[str]) -> Encoded:
    worker = idle.get()
    try:
        return worker.tokenise(documents)
    finally:
        idle.put(worker)


def _end_all(workers: list[_Worker], threads: ThreadPoolExecutor) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.end()  # from here on the worker's thread reads the end of its pipe
        for pipe in (worker.process.stdin, worker.process.stdout):
            assert pipe
            try:
                pipe.close()
            except OSError:  # half a request was left in the buffer of a process that has ended
                pass
