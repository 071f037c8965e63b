"""Keeps the answers of language models by the content of the question, so that a rerun costs nothing.

One SQLite file. An answer is on the disk before it is used: a pass that is killed at any time goes on from there.
"""

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from lightsae.analysis.labels.llm.judge import Answer
from lightsae.errors import ConfigError, FormatError, reading
from lightsae.formats.files import explain_os_errors

# Goes up when the same question may no longer be answered from what an older version kept.
VERSION = 1


class AnswerCache:
    """Answers by question. Use as a context manager, or `close` it.

    Args:
        path: The file; made if it does not exist, with its folder.

    Raises:
        FormatError: The file is something else.
        ConfigError: It cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with explain_os_errors(path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = None
        try:
            connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            # Each statement is a transaction. WAL: another process may read and write meanwhile.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS answers "
                "(key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER)"
            )
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.OperationalError):
                raise ConfigError(
                    f"Cannot write {str(path)!r}: {error}; choose another file for the answers."
                ) from error
            raise FormatError(f"{str(path)!r} is no file of answers ({error}); name another one.") from error
        self._connection = connection

    def get(self, key: str) -> Answer | None:
        """Return what was answered, or None. Its tokens are those that it cost when it was asked."""
        with self._reading():
            row = self._connection.execute(
                "SELECT text, prompt_tokens, completion_tokens FROM answers WHERE key = ?", (key,)
            ).fetchone()
        # Whatever its columns are called, SQLite keeps values of any type in them.
        if row is not None and tuple(map(type, row)) != (str, int, int):
            raise FormatError(f"{str(self.path)!r} holds an answer that is none, {row!r:.60}; name another file.")
        return Answer(*row) if row else None

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer."""
        with self._reading():
            self._connection.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
                (key, answer.text, answer.prompt_tokens, answer.completion_tokens),
            )

    def __len__(self) -> int:
        with self._reading():
            return int(self._connection.execute("SELECT count(*) FROM answers").fetchone()[0])

    def _reading(self) -> AbstractContextManager[None]:
        return reading(FormatError, f"{str(self.path)!r} is a damaged file of answers", "name another one")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "AnswerCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def question_key(judge: str, messages: Sequence[Mapping[str, str]], max_tokens: int) -> str:
    """Return the hash that a question to a judge (its `identity`) is kept under."""
    question = json.dumps([VERSION, judge, [dict(m) for m in messages], max_tokens], sort_keys=True)
    return hashlib.sha256(question.encode()).hexdigest()
