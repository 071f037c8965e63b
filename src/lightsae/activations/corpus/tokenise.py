"""Tokenise chunks of documents, in order, in a background thread or in the caller's; the ids are the same either way.

A fast tokenizer works in Rust: on all cores, while Python goes on. So one thread is as fast as worker processes.
"""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.errors import CorpusError, arg

PIECE_CHARACTERS = 500_000
# Chunks on their way to a background thread: one in work, one that waits, and the one that the caller asks for.
_CHUNKS_AHEAD = 3

Ids = NDArray[np.int32]
Encode = Callable[[list[str]], list[list[int]]]


class Tokeniser:
    """Turns lists of texts into token ids, with a tokenizer of its own.

    At most `depth` lists should be in flight; the caller keeps their order by asking for the results in the order in
    which it submitted.

    Args:
        tokenizer: A transformers tokenizer, fast or slow.
        num_workers: 0: tokenise in `submit`; otherwise a thread does, from the first `submit` on.
    """

    def __init__(self, tokenizer: Any, num_workers: int) -> None:
        self._tokenizer, self._in_background = tokenizer, num_workers > 0
        self._thread: ThreadPoolExecutor | None = None
        self.depth = _CHUNKS_AHEAD if self._in_background else 1

    @cached_property
    def _encode(self) -> Encode:
        return own_encoder(self._tokenizer)

    def submit(self, documents: list[str]) -> Callable[[], tuple[Ids, list[int]]]:
        """Begin with a list, and return a function that waits for its ids and the number of ids of each document.

        Raises:
            CorpusError: From the returned function: the tokenizer failed in the background.
        """
        encode = self._encode
        if not self._in_background:
            encoded = encode_documents(encode, documents)
            return lambda: encoded
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="lightsae-tokenise")
        future = self._thread.submit(encode_documents, encode, documents)

        def result() -> tuple[Ids, list[int]]:
            # Not by `result()`: a panic in the tokenizer's Rust code is no Exception, and a Ctrl-C here is no failure.
            if (error := future.exception()) is not None:
                raise CorpusError(
                    f"The tokenizer failed in the background: {type(error).__name__}: {error}. "
                    f"See it with {arg('num_workers')}: 0."
                ) from error
            return future.result()

        return result

    def close(self) -> None:
        """End the thread after the list that it works on. A later `submit` starts another."""
        if self._thread:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None


def own_encoder(tokenizer: Any) -> Encode:
    """Return a function from texts to ids without special tokens, which shares nothing with the tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        slow = copy.deepcopy(tokenizer)
        return lambda texts: [slow.encode(text, add_special_tokens=False, verbose=False) for text in texts]
    fast = type(backend).from_str(backend.to_str())
    # A tokenizer.json may carry both from its training; they would cut documents or fill them up.
    fast.no_truncation()
    fast.no_padding()
    return lambda texts: [encoding.ids for encoding in fast.encode_batch_fast(texts, add_special_tokens=False)]


def encode_documents(encode: Encode, documents: list[str]) -> tuple[Ids, list[int]]:
    """Return the ids of all documents, joined, and the number of ids of each document."""
    pieces = [list(_pieces(document)) for document in documents]
    ids = iter(encode([piece for document in pieces for piece in document]))
    by_document = [[np.array(next(ids), np.int32) for _ in document] for document in pieces]
    joined = np.concatenate([np.empty(0, np.int32), *(piece for document in by_document for piece in document)])
    return joined, [sum(map(len, document)) for document in by_document]


def _pieces(text: str) -> Iterator[str]:
    """Cut a very long text after a line end: a tokenizer holds about a hundred bytes of notes for each token."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        cut = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1 or start + PIECE_CHARACTERS
        yield text[start:cut]
        start = cut
    yield text[start:]
