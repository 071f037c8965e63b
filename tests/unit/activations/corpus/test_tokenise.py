"""Worker processes: same ids as in process, no torch, no survivors, no hang when one dies."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lightsae.activations.corpus import tokenise_worker
from lightsae.activations.corpus.tokenise import Tokeniser
from lightsae.errors import CorpusError


class Fast:
    """As much of a fast transformers tokenizer as the workers need."""

    def __init__(self) -> None:
        words = {word: number for number, word in enumerate(["[UNK]", "a", "b", "c"])}
        self.backend_tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


@pytest.fixture
def workers() -> Iterator[Tokeniser]:
    tokeniser = Tokeniser(Fast(), 2)
    yield tokeniser
    tokeniser.close()


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if tokenise_worker.__file__ in " ".join(p.cmdline())]


def test_results_come_in_order_and_equal_those_of_this_process(workers: Tokeniser) -> None:
    chunks = [["a b c"] * (400 - 20 * i) + ["c", "", "x a"] for i in range(20)]
    alone = Tokeniser(Fast(), 0)
    pending = [workers.submit(chunk) for chunk in chunks]
    for chunk, result in zip(chunks, pending, strict=True):
        ids, lengths = result()
        assert lengths == [3] * (len(chunk) - 3) + [1, 0, 2]
        assert ids[-3:].tolist() == [3, 0, 1]
        expected, expected_lengths = alone.submit(chunk)()
        assert ids.tolist() == expected.tolist()
        assert lengths == expected_lengths


def test_large_requests_and_answers_do_not_block_each_other(workers: Tokeniser) -> None:
    pending = [workers.submit(["a b " * 200_000]) for _ in range(4)]
    assert [result()[1] for result in pending] == [[400_000]] * 4


def test_very_long_texts_are_tokenised_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise_worker, "PIECE_CHARACTERS", 10)
    longest: list[int] = []
    encode = tokenise_worker.load_encoder("fast", Fast().backend_tokenizer.to_str())

    def spy(texts: list[str]) -> list[list[int]]:
        longest.append(max(map(len, texts)))
        return encode(texts)

    _, lengths = tokenise_worker.encode_documents(spy, ["a b\n" * 10, "c", "abcdefghijklmno"])
    assert longest == [10]
    assert lengths == [20, 1, 2]  # a word that is longer than a piece is cut


def test_a_worker_that_dies_is_an_error(workers: Tokeniser) -> None:
    workers.submit(["a"])()
    for child in children():
        child.kill()
    with pytest.raises(CorpusError, match=r"exit code -9.*num_workers"):
        workers.submit(["a"])()


def test_a_tokenizer_that_fails_is_an_error() -> None:
    strict = Fast()
    strict.backend_tokenizer.model = models.WordLevel({"a": 0})
    tokeniser = Tokeniser(strict, 1)
    try:
        result = tokeniser.submit(["a b"])
        with pytest.raises(CorpusError, match=r"tokenizer failed in a worker process.*num_workers: 0"):
            result()
        assert tokeniser.submit(["a"])()[0].tolist() == [0]
    finally:
        tokeniser.close()


def test_close_leaves_no_process_and_can_interrupt_work(workers: Tokeniser) -> None:
    for _ in range(6):
        workers.submit(["a b " * 300_000])
    assert len(children()) == 2
    workers.close()
    assert children() == []
    assert workers.submit(["a"])()[0].tolist() == [1]


def test_an_abandoned_pool_leaves_no_process() -> None:
    tokeniser = Tokeniser(Fast(), 1)
    tokeniser.submit(["a"])()
    assert len(children()) == 1
    del tokeniser
    assert children() == []


def test_workers_outlive_an_interrupt_and_import_little(workers: Tokeniser) -> None:
    # One answer of each: a worker that is still starting cannot ignore anything yet.
    for answer in [workers.submit(["a"]) for _ in range(4)]:
        answer()
    for child in children():
        child.send_signal(signal.SIGINT)
        libraries = {os.path.basename(mapped.path) for mapped in child.memory_maps()}
        assert not [name for name in libraries if "torch" in name or "numpy" in name or "arrow" in name]
    time.sleep(0.1)
    assert workers.submit(["b"])()[0].tolist() == [2]


def test_slow_tokenizers_are_pickled(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert tokeniser.submit(["ab", "c"])()[0].tolist() == [97, 98, 99]
    finally:
        tokeniser.close()


def test_workers_die_with_a_killed_parent() -> None:
    # The parent has also forked a child that keeps the pipes open, as data loaders do.
    program = """
        import os, sys, time
        from tokenizers import Tokenizer, models
        from lightsae.activations.corpus.tokenise import Tokeniser

        class Fast:
            backend_tokenizer = Tokenizer(models.WordLevel({"a": 0}))

        tokeniser = Tokeniser(Fast(), 2)
        tokeniser.submit(["a"])()
        pids = [worker.process.pid for worker in tokeniser._pool._workers]
        if (fork := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        print(fork, *pids, flush=True)
        time.sleep(60)
        """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        fork, *pids = (psutil.Process(int(pid)) for pid in parent.stdout.readline().split())
        try:
            assert len(pids) == 2
            parent.kill()
            assert psutil.wait_procs(pids, timeout=10)[1] == []
        finally:
            fork.kill()
