"""Tokenise chunks of documents, in order, in a background thread or in the caller's; the ids are the same either way.

A fast tokenizer works in Rust: on all cores, while Python goes on. So one thread is as fast as worker processes.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.corpus.conversation import Written
from lightsae.activations.roles import MARKUP, TEXT
from lightsae.errors import CorpusError, arg

PIECE_CHARACTERS = 500_000
# Chunks on their way to a background thread: one in work, one that waits, and the one that the caller asks for.
_CHUNKS_AHEAD = 3

Ids = NDArray[np.int32]
Roles = NDArray[np.uint8]
Encode = Callable[[list[str]], list[list[int]]]
# With the characters of each token: the first, and the one after the last.
EncodeWithPlaces = Callable[[list[str]], list[tuple[list[int], list[tuple[int, int]]]]]


@dataclass(frozen=True)
class Encoded:
    """Documents as token ids.

    Attributes:
        ids: Of all documents, joined.
        roles: Of each token; see `roles`.
        lengths: Number of ids of each document.
    """

    ids: NDArray[np.integer[Any]]
    roles: Roles
    lengths: list[int]


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

    @cached_property
    def _encode_with_places(self) -> EncodeWithPlaces:
        return own_encoder_with_places(self._tokenizer)

    def submit(self, documents: Sequence[str | Written]) -> Callable[[], Encoded]:
        """Begin with a list, and return a function that waits for its ids and roles.

        Raises:
            CorpusError: From the returned function: the tokenizer failed in the background.
        """
        with_roles = any(isinstance(document, Written) for document in documents)
        encoders = self._encode, self._encode_with_places if with_roles else None
        if not self._in_background:
            encoded = encode_documents(*encoders, documents)
            return lambda: encoded
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="lightsae-tokenise")
        future = self._thread.submit(encode_documents, *encoders, documents)

        def result() -> Encoded:
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
    fast = _own(backend)
    return lambda texts: [encoding.ids for encoding in fast.encode_batch_fast(texts, add_special_tokens=False)]


def own_encoder_with_places(tokenizer: Any) -> EncodeWithPlaces:
    """Return the like for a fast tokenizer, which says of each id which characters it stands for."""
    fast = _own(tokenizer.backend_tokenizer)
    return lambda texts: [
        (encoding.ids, encoding.offsets) for encoding in fast.encode_batch(texts, add_special_tokens=False)
    ]


def _own(backend: Any) -> Any:
    fast = type(backend).from_str(backend.to_str())
    # A tokenizer.json may carry both from its training; they would cut documents or fill them up.
    fast.no_truncation()
    fast.no_padding()
    return fast


def encode_documents(
    encode: Encode, with_places: EncodeWithPlaces | None, documents: Sequence[str | Written]
) -> Encoded:
    """Return the ids of all documents, and the roles of those that were written out of conversations."""
    pieces = [list(_pieces(document if isinstance(document, str) else document.text)) for document in documents]
    if with_places is None:
        encoded = iter(encode([piece for document in pieces for piece in document]))
        by_document = [[np.array(next(encoded), np.int32) for _ in document] for document in pieces]
        lengths = [sum(map(len, document)) for document in by_document]
        ids = np.concatenate([np.empty(0, np.int32), *(piece for document in by_document for piece in document)])
        return Encoded(ids, np.full(len(ids), TEXT, np.uint8), lengths)
    located = iter(with_places([piece for document in pieces for piece in document]))
    every, roles, lengths = [np.empty(0, np.int32)], [np.empty(0, np.uint8)], []
    for document, parts in zip(documents, pieces, strict=True):
        first, places = 0, [np.empty((0, 2), np.int64)]
        for part in parts:
            ids_of_part, characters = next(located)
            every.append(np.array(ids_of_part, np.int32))
            places.append(np.array(characters, np.int64).reshape(-1, 2) + first)
            first += len(part)
        roles.append(_roles_of(document, np.concatenate(places)))
        lengths.append(len(roles[-1]))
    return Encoded(np.concatenate(every), np.concatenate(roles), lengths)


def _roles_of(document: str | Written, places: NDArray[np.int64]) -> Roles:
    """Return the role of each token of a document: that of a span which its characters share with it."""
    if isinstance(document, str):
        return np.full(len(places), TEXT, np.uint8)
    roles = np.full(len(places), MARKUP, np.uint8)
    starts, ends = places.T
    for first, last, role in document.spans:
        roles[np.searchsorted(ends, first, side="right") : np.searchsorted(starts, last, side="left")] = role
    return roles


def _pieces(text: str) -> Iterator[str]:
    """Cut a very long text after a line end: a tokenizer holds about a hundred bytes of notes for each token."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        cut = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1 or start + PIECE_CHARACTERS
        yield text[start:cut]
        start = cut
    yield text[start:]
