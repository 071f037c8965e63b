"""The process that turns text into token ids for `tokenise.py`. It is run as a file, never imported by its package.

It needs the standard library and, for a fast tokenizer, `tokenizers`: neither torch nor numpy nor `lightsae`, so that
a worker starts in a few hundredths of a second. It reads pickled requests from its standard input and writes
pickled answers to what was its standard output. It ends when its input closes or its parent is gone.
"""

import os
import pickle
import signal
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

PIECE_CHARACTERS = 500_000

Encode = Callable[[list[str]], list[list[int]]]
Encoded = tuple[bytes, list[int]]


def load_encoder(kind: str, payload: Any) -> Encode:
    """Return the function from texts to ids, without special tokens.

    Args:
        kind: `fast` (payload: the JSON of a `tokenizers.Tokenizer`) or `pickled` (payload: any object with the
            `encode` method of a transformers tokenizer).
        payload: See `kind`.
    """
    if kind == "pickled":
        slow = pickle.loads(payload)
        return lambda texts: [slow.encode(text, add_special_tokens=False, verbose=False) for text in texts]
    from tokenizers import Tokenizer

    fast = Tokenizer.from_str(payload)
    # A tokenizer.json may carry both from its training; they would cut documents or fill them up.
    fast.no_truncation()
    fast.no_padding()
    return lambda texts: [encoding.ids for encoding in fast.encode_batch_fast(texts, add_special_tokens=False)]


def encode_documents(encode: Encode, documents: list[str]) -> Encoded:
    """Return the ids of all documents as the bytes of an int32 array, and the number of ids of each document."""
    pieces = [list(_pieces(document)) for document in documents]
    ids = iter(encode([piece for document in pieces for piece in document]))
    joined, lengths = array("i"), []
    for document in pieces:
        before = len(joined)
        for _ in document:
            joined.extend(next(ids))
        lengths.append(len(joined) - before)
    return joined.tobytes(), lengths


def _pieces(text: str) -> Iterator[str]:
    """Cut a very long text after a line end: a tokenizer holds about a hundred bytes of notes for each token."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        cut = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1 or start + PIECE_CHARACTERS
        yield text[start:cut]
        start = cut
    yield text[start:]


def _end_with_parent(parent: int) -> None:
    # A process forked from the parent may hold the pipe open, so the closed input alone is not enough.
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def serve() -> None:
    """Answer requests until the input closes: `("ids", bytes, lengths)`, or `("error", message)`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[1]),), daemon=True).start()
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a tokenizer prints must not end up among the answers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    setup: list[Any] | None = None  # the kind and payload of `load_encoder`
    encode: Encode | None = None
    while True:
        try:
            if setup is None:
                sys.path[:], *setup = pickle.load(requests)
            documents = pickle.load(requests)
        except EOFError:
            return
        answer: tuple[Any, ...]
        try:
            encode = encode or load_encoder(*setup)
            answer = ("ids", *encode_documents(encode, documents))
        except BaseException as error:  # a panic in the tokenizer's Rust code is no Exception
            answer = ("error", f"{type(error).__name__}: {error}")
        try:
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
        except BrokenPipeError:
            os._exit(0)


if __name__ == "__main__":
    serve()
