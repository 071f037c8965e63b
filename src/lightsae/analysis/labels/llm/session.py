"""Asks a judge through the cache and within the budget, several questions at once, and counts what became of them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lightsae.analysis.labels.llm.cache import AnswerCache, question_key
from lightsae.analysis.labels.llm.judge import AskError, Budget, BudgetSpent, Judge
from lightsae.analysis.labels.llm.prompts import Prompt
from lightsae.errors import ModelError

Value = TypeVar("Value")
Item = TypeVar("Item", bound=Hashable)

# So many failures with no answer between them: the endpoint is broken, and the rest would fail as well.
_HOPELESS = 50


@dataclass
class Tally:
    """What became of the questions.

    Attributes:
        asked: Questions that the judge was sent and answered.
        cached: Questions whose answer was kept from before.
        prompt_tokens, completion_tokens: Cost of those asked; what was kept costs nothing.
        failures: By prompt and kind, such as `detection: not parseable`.
    """

    asked: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)


class JudgeSession:
    """One run of questions to a judge.

    Args:
        judge: Who answers.
        cache: Where answers are kept; None keeps none.
        budget: In tokens, of this run.

    Attributes:
        tally: What became of the questions.
        stopped: Why the budget did not reach all of them; None if it did.
    """

    def __init__(self, judge: Judge, cache: AnswerCache | None, budget: Budget) -> None:
        self.judge, self.cache, self.budget = judge, cache, budget
        self.tally = Tally()
        self.stopped: str | None = None
        self._failed_in_a_row = 0

    async def ask(
        self, prompt: Prompt, messages: Sequence[Mapping[str, str]], parse: Callable[[str], Value | None]
    ) -> Value | None:
        """Return what the judge's answer says; None, and a count among the failures, if no usable answer came.

        Raises:
            BudgetSpent: The question could exceed the budget.
            ModelError: The judge answers no questions at all.
        """
        key = question_key(self.judge.identity, messages, prompt.max_tokens)
        answer = self.cache.get(key) if self.cache is not None else None
        if answer is not None:
            self.tally.cached += 1
        else:
            reserved = await self.budget.reserve(messages, prompt.max_tokens)
            try:
                answer = await self.judge.ask(messages, max_tokens=prompt.max_tokens)
            except AskError as error:
                self._count_failure(prompt, error)
                return None
            finally:
                self.budget.book(reserved, answer)
            self._failed_in_a_row = 0
            if self.cache is not None:
                self.cache.put(key, answer)
            self.tally.asked += 1
            self.tally.prompt_tokens += answer.prompt_tokens
            self.tally.completion_tokens += answer.completion_tokens
        value = parse(answer.text)
        if value is None:
            self.tally.failures[f"{prompt.name}: not parseable"] += 1
        return value

    async def each(
        self,
        items: Sequence[Item],
        work: Callable[[Item], Awaitable[Value | None]],
        *,
        at_once: int,
        done: Callable[[int], None],
    ) -> dict[Item, Value]:
        """Do some work for each item, several at once, and return what is not None by item.

        Items that the budget does not reach are left out, and `stopped` says so; the others go on, for what the cache
        knows is free. `done` is called with the number of items that were worked on.
        """
        values: dict[Item, Value] = {}
        waiting, count = iter(items), 0

        async def worker() -> None:
            nonlocal count
            for item in waiting:
                try:
                    value = await work(item)
                except BudgetSpent as error:
                    self.stopped = str(error)
                    continue
                if value is not None:
                    values[item] = value
                count += 1
                done(count)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once, len(items))):
                    group.create_task(worker())
        except ExceptionGroup as group_error:
            # One is enough to say what is wrong; the other workers met the same, or were stopped.
            raise group_error.exceptions[0] from None
        return values

    def _count_failure(self, prompt: Prompt, error: AskError) -> None:
        self.tally.failures[f"{prompt.name}: {error.kind}"] += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _HOPELESS:
            raise ModelError(
                f"The judge {self.judge.name!r} failed on {_HOPELESS} questions in a row, the last with: {error.kind}. "
                "What was answered is kept: once it works, the same command goes on from there."
            ) from error


def run_session(
    judge: Judge,
    cache: str | Path | None,
    budget_tokens: int | None,
    work: Callable[[JudgeSession], Coroutine[Any, Any, Value]],
) -> Value:
    """Open the cache, do the work in an event loop of its own, and close the judge and the cache.

    In a notebook too, whose own loop runs in the caller's thread.
    """
    budget = Budget(budget_tokens)

    async def work_and_close(session: JudgeSession) -> Value:
        try:
            return await work(session)
        finally:
            await judge.close()

    with nullcontext() if cache is None else AnswerCache(cache) as answers:
        return _finished(work_and_close(JudgeSession(judge, answers, budget)))


def _finished(work: Coroutine[Any, Any, Value]) -> Value:
    """Run a coroutine to its end; in another thread, if this one has an event loop that runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1, thread_name_prefix="lightsae-judge") as thread:
        return thread.submit(asyncio.run, work).result()
