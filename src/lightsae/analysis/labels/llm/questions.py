"""Asks a judge through the cache and within the budget, and counts what became of the questions."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lightsae.analysis.labels.llm.cache import AnswerCache, question_key
from lightsae.analysis.labels.llm.endpoint import AskError, Budget, Judge
from lightsae.analysis.labels.llm.prompts import Prompt
from lightsae.errors import ModelError

Value = TypeVar("Value")

# So many failures with no answer between them: the endpoint is broken, and the rest would fail as well.
_HOPELESS = 50


@dataclass
class Tally:
    """What became of the questions.

    Attributes:
        asked: Questions that a judge was sent and answered.
        cached: Questions whose answer was kept from before.
        prompt_tokens, completion_tokens: Of those asked; what was kept costs nothing.
        failures: By prompt and kind, such as `detection: not parseable`.
    """

    asked: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)


class Questions:
    """A judge with its cache, its budget and a tally.

    Args:
        judge: Who answers.
        cache: Where answers are kept; None keeps none.
        budget: In tokens, of this run.
    """

    def __init__(self, judge: Judge, cache: AnswerCache | None, budget: Budget) -> None:
        self.judge, self.cache, self.budget = judge, cache, budget
        self.tally = Tally()
        self._failed_in_a_row = 0

    async def ask(
        self, prompt: Prompt, messages: Sequence[Mapping[str, str]], parse: Callable[[str], Value | None]
    ) -> Value | None:
        """Return what the judge's answer says; None, and a count among the failures, where no usable answer came.

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
        said = parse(answer.text)
        if said is None:
            self.tally.failures[f"{prompt.name}: not parseable"] += 1
        return said

    def _count_failure(self, prompt: Prompt, error: AskError) -> None:
        self.tally.failures[f"{prompt.name}: {error.kind}"] += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _HOPELESS:
            raise ModelError(
                f"The judge {self.judge.name!r} failed on {_HOPELESS} questions in a row, the last with: {error.kind}. "
                "What was answered is kept: once it works, the same command goes on from there."
            ) from error
