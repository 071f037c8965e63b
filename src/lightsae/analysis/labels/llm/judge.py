"""What a language model that explains features and judges labels has to do, and what its questions may cost."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lightsae.errors import ConfigError

Message = Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What a model said, and what that cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class AskError(Exception):
    """One question was not answered; `kind` says why, in words to be counted by."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class BudgetSpent(Exception):
    """The next question could cost more tokens than the run has left."""


@runtime_checkable
class Judge(Protocol):
    """Answers questions.

    Attributes:
        name: Shown beside a label.
        identity: What answers are kept under; two models that may answer differently differ in it.
    """

    name: str
    identity: str

    async def ask(self, messages: Sequence[Message], *, max_tokens: int) -> Answer:
        """Return the answer.

        Raises:
            AskError: This question was not answered.
            ModelError: No question would be.
        """

    async def close(self) -> None:
        """Let go of connections; the next question opens them anew."""


class Budget:
    """Keeps a run below a number of tokens, prompts and answers together.

    Before a question is sent, its greatest cost is set aside, estimated at 3 bytes per token of the prompt; so the cap
    holds unless a prompt has more tokens than that. It goes to the questions in their order: one that waits is not
    passed by those behind it.

    Args:
        tokens: The cap; None for none.
    """

    def __init__(self, tokens: int | None = None) -> None:
        if tokens is not None and tokens < 0:
            raise ConfigError(f"The budget is {tokens} tokens; it must be 0 or more.")
        self.cap, self.spent, self._reserved = tokens, 0, 0
        self._booked, self._turn = asyncio.Event(), asyncio.Lock()

    async def reserve(self, messages: Sequence[Message], max_tokens: int) -> int:
        """Set aside what a question may cost, and return it; waits for others if it may fit once they are answered.

        Raises:
            BudgetSpent: It is more than what is left, whatever the others come to.
        """
        most = estimated_tokens(messages) + max_tokens
        async with self._turn:
            while self.cap is not None and self.spent + self._reserved + most > self.cap:
                if self.spent + most > self.cap:
                    raise BudgetSpent(f"The budget of {self.cap} tokens is spent: {self.spent} were used.")
                self._booked.clear()
                await self._booked.wait()
            self._reserved += most
        return most

    def book(self, reserved: int, answer: Answer | None) -> None:
        """Replace what was set aside by what it cost; nothing if no answer came."""
        self._reserved -= reserved
        if answer is not None:
            self.spent += answer.prompt_tokens + answer.completion_tokens
        self._booked.set()


def estimated_tokens(messages: Sequence[Message]) -> int:
    """Return about how many tokens a prompt has, at 3 bytes each: rather too many than too few."""
    return sum(len(m["content"].encode()) // 3 + 8 for m in messages)
