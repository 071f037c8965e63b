"""A thread that tokenises: same ids as in the caller's, no survivors, errors in words, Ctrl-C stays the caller's."""

import copy
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lightsae.activations.corpus import tokenise
from lightsae.activations.corpus.tokenise import Tokeniser
from lightsae.errors import CorpusError


class Fast:
    """As much of a fast transformers tokenizer as is needed."""

    def __init__(self) -> None:
        words = {word: number for number, word in enumerate(["[UNK]", "a", "b", "c"])}
        self.backend_tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


@pytest.fixture
def background() -> Iterator[Tokeniser]:
    tokeniser = Tokeniser(Fast(), 2)
    yield tokeniser
    tokeniser.close()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("lightsae-tokenise")]


def wait_for_no_thread() -> None:
    deadline = time.monotonic() + 20
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == []


def test_results_come_in_order_and_equal_those_of_this_process(background: Tokeniser) -> None:
    chunks = [["a b c"] * (400 - 20 * i) + ["c", "", "x a"] for i in range(20)]
    alone = Tokeniser(Fast(), 0)
    pending = [background.submit(chunk) for chunk in chunks]
    for chunk, result in zip(chunks, pending, strict=True):
        encoded = result()
        ids, lengths = encoded.ids, encoded.lengths
        assert lengths == [3] * (len(chunk) - 3) + [1, 0, 2]
        assert ids[-3:].tolist() == [3, 0, 1]
        other = alone.submit(chunk)()
        expected, expected_lengths = other.ids, other.lengths
        assert ids.tolist() == expected.tolist()
        assert lengths == expected_lengths


def test_large_requests_and_answers_do_not_block_each_other(background: Tokeniser) -> None:
    pending = [background.submit(["a b " * 200_000]) for _ in range(4)]
    assert [result().lengths for result in pending] == [[400_000]] * 4


def test_very_long_texts_are_tokenised_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "PIECE_CHARACTERS", 10)
    longest: list[int] = []
    encode = tokenise.own_encoder(Fast())

    def spy(texts: list[str]) -> list[list[int]]:
        longest.append(max(map(len, texts)))
        return encode(texts)

    lengths = tokenise.encode_documents(spy, None, ["a b\n" * 10, "c", "abcdefghijklmno"]).lengths
    assert longest == [10]
    assert lengths == [20, 1, 2]  # a word that is longer than a piece is cut


def test_nothing_to_tokenise_is_no_ids(background: Tokeniser) -> None:
    for tokeniser in (background, Tokeniser(Fast(), 0)):
        encoded = tokeniser.submit(["", ""])()
        ids, lengths = encoded.ids, encoded.lengths
        assert (ids.tolist(), ids.dtype, lengths) == ([], "int32", [0, 0])


def test_a_tokenizer_that_fails_is_an_error() -> None:
    strict = Fast()
    strict.backend_tokenizer.model = models.WordLevel({"a": 0})
    tokeniser = Tokeniser(strict, 1)
    try:
        result = tokeniser.submit(["a b"])
        with pytest.raises(CorpusError, match=r"tokenizer failed in the background: \w+: .*num_workers: 0"):
            result()
        assert tokeniser.submit(["a"])().ids.tolist() == [0]
    finally:
        tokeniser.close()


def test_a_panic_is_an_error_too(background: Tokeniser) -> None:
    class Panic(BaseException):
        """What the tokenizer's Rust code raises is no Exception."""

    class Panics:
        def encode(self, text: str, add_special_tokens: bool, verbose: bool) -> list[int]:
            raise Panic("at the disco")

    tokeniser = Tokeniser(Panics(), 1)
    with pytest.raises(CorpusError, match="Panic: at the disco"):
        tokeniser.submit(["a"])()
    tokeniser.close()


def test_close_leaves_no_thread_and_drops_what_waits(background: Tokeniser) -> None:
    for _ in range(40):
        background.submit(["a b " * 100_000])
    assert len(threads()) == 1
    background.close()
    assert threads() == []
    assert background.submit(["a"])().ids.tolist() == [1]


def test_an_abandoned_tokeniser_leaves_no_thread() -> None:
    tokeniser = Tokeniser(Fast(), 1)
    tokeniser.submit(["a"])()
    assert len(threads()) == 1
    del tokeniser
    wait_for_no_thread()


def test_it_has_a_tokenizer_of_its_own(background: Tokeniser) -> None:
    given = Fast()
    given.backend_tokenizer.enable_truncation(1)
    given.backend_tokenizer.enable_padding(length=9)
    for workers in (0, 1):
        tokeniser = Tokeniser(copy.copy(given), workers)
        assert tokeniser.submit(["a b c"])().ids.tolist() == [1, 2, 3]
        tokeniser.close()
    assert given.backend_tokenizer.encode("a b c").ids == [1, *[0] * 8], "that of the model is left as it was"


def test_slow_tokenizers_work_too(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_tokenizer_of_a_user.py").write_text(
        textwrap.dedent(
            """
            class Slow:
                def encode(self, text, add_special_tokens, verbose):
                    print("a tokenizer may print", flush=True)
                    assert not add_special_tokens
                    return [ord(letter) for letter in text]
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    from slow_tokenizer_of_a_user import Slow

    tokeniser = Tokeniser(Slow(), 1)
    try:
        assert tokeniser.submit(["ab", "c"])().ids.tolist() == [97, 98, 99]
    finally:
        tokeniser.close()


@pytest.mark.parametrize("ending", ["return", "sys.exit(3)", "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"])
def test_the_interpreter_ends_beside_work_that_nobody_asked_for(ending: str) -> None:
    program = f"""
        import os, signal, sys, time
        from tokenizers import Tokenizer, models
        from lightsae.activations.corpus.tokenise import Tokeniser

        # A process that was started in the background of a shell ignores Ctrl-C, and so would this one.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        class Fast:
            backend_tokenizer = Tokenizer(models.WordLevel({{"a": 0}}, unk_token="a"))

        def main():
            tokeniser = Tokeniser(Fast(), 2)
            for _ in range(tokeniser.depth):
                tokeniser.submit(["a" * 100_000])
            {ending}

        main()
        """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ),
    )
    expected = {"return": 0, "sys.exit(3)": 3}.get(ending, -signal.SIGINT)
    assert ended.returncode == expected, ended.stderr
