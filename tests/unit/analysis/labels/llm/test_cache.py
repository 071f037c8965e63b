import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightsae.analysis.labels.llm.cache import AnswerCache, question_key
from lightsae.analysis.labels.llm.judge import Answer
from lightsae.errors import ConfigError, FormatError

QUESTION = [{"role": "user", "content": "u"}]


def test_an_answer_is_there_again(tmp_path: Path) -> None:
    path, key = tmp_path / "a" / "answers.db", question_key("m", QUESTION, 5)
    with AnswerCache(path) as cache:
        assert cache.get(key) is None
        cache.put(key, Answer("naïve 🙂\n", 3, 2))
    with AnswerCache(path) as cache:
        assert cache.get(key) == Answer("naïve 🙂\n", 3, 2)
        assert len(cache) == 1


def test_any_change_of_the_question_is_another_one() -> None:
    keys = {
        question_key("m", QUESTION, 5),
        question_key("n", QUESTION, 5),
        question_key("m", QUESTION, 6),
        question_key("m", [{"role": "system", "content": "u"}], 5),
        question_key("m", QUESTION * 2, 5),
    }
    assert len(keys) == 5
    assert question_key("m", [{"content": "u", "role": "user"}], 5) in keys


def test_a_kill_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    code = f"""
import os
from lightsae.analysis.labels.llm.cache import AnswerCache
from lightsae.analysis.labels.llm.judge import Answer
cache = AnswerCache({str(path)!r})
for i in range(20):
    cache.put(str(i), Answer("x", 1, 1))
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -9
    with AnswerCache(path) as cache:
        assert len(cache) == 20


def test_two_passes_may_share_a_file(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "a.db") as one, AnswerCache(tmp_path / "a.db") as other:
        one.put("k", Answer("x", 1, 1))
        other.put("l", Answer("y", 1, 1))
        assert other.get("k") == Answer("x", 1, 1)
        assert one.get("l") == Answer("y", 1, 1)


def test_other_files_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("notes " * 200)
    with pytest.raises(FormatError, match=r"notes\.txt' is no file of answers"):
        AnswerCache(path)
    assert path.read_text() == "notes " * 200
    with pytest.raises(ConfigError, match="Cannot write"):
        AnswerCache(tmp_path)


def test_a_damaged_file_is_one_line_whenever_that_shows(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    with AnswerCache(path) as cache:
        for number in range(300):
            cache.put(str(number), Answer("x" * 200, 1, 1))
    whole = bytearray(path.read_bytes())
    # Behind the first page, which is looked at as the file is opened.
    for place in range(4096, len(whole), 4096):
        whole[place : place + 100] = b"\xff" * 100
    path.write_bytes(whole)
    with AnswerCache(path) as cache:
        for use in (lambda: cache.get("7"), lambda: cache.put("new", Answer("y", 1, 1)), lambda: len(cache)):
            with pytest.raises(FormatError, match=r"is a damaged file of answers .*; name another one") as caught:
                use()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [(b"x", 1, 1), ("x", "many", 1), ("x", 1, None), ("x", 1, 0.5)])
def test_an_answer_of_other_types(tmp_path: Path, row: tuple[object, ...]) -> None:
    with AnswerCache(tmp_path / "answers.db") as cache:
        cache._connection.execute("INSERT INTO answers VALUES ('k', ?, ?, ?)", row)
        with pytest.raises(FormatError, match="holds an answer that is none"):
            cache.get("k")
