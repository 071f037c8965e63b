"""The event loop of a session: one of its own, also where the caller's thread runs one, as in a notebook."""

import asyncio
import threading
from typing import Any

import pytest

from lightsae.analysis.labels.llm.session import JudgeSession, run_session


class Closing:
    """A judge that is asked nothing."""

    name = identity = "closing"

    def __init__(self) -> None:
        self.closed = 0

    async def ask(self, messages: Any, *, max_tokens: int) -> Any:
        raise AssertionError

    async def close(self) -> None:
        self.closed += 1


def test_a_session_runs_in_a_notebook(tmp_path: Any) -> None:
    judge: Any = Closing()

    async def work(session: JudgeSession) -> tuple[int, str]:
        await asyncio.sleep(0)
        return 7, threading.current_thread().name

    async def cell() -> tuple[int, str]:
        # As a cell calls it: not awaited, while the notebook's loop runs.
        return run_session(judge, tmp_path / "answers.sqlite", None, work)

    value, thread = asyncio.run(cell())
    assert value == 7
    assert thread != threading.current_thread().name
    # Elsewhere nothing of it shows.
    assert run_session(judge, None, None, work) == (7, threading.current_thread().name)
    assert judge.closed == 2


def test_what_goes_wrong_in_it_is_told_in_a_notebook_too() -> None:
    judge: Any = Closing()

    async def work(session: JudgeSession) -> int:
        raise KeyError("question")

    async def cell() -> int:
        return run_session(judge, None, None, work)

    with pytest.raises(KeyError, match="question"):
        asyncio.run(cell())
    assert judge.closed == 1
