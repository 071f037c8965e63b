"""The language models that explain features and judge labels: what one has to do, and those behind an endpoint.

Settings of an endpoint come from the environment where they are not given: LIGHTSAE_LLM_BASE_URL, LIGHTSAE_LLM_MODEL,
LIGHTSAE_LLM_API_KEY. A failure that would meet every question alike (no such model, a wrong key, no connection) ends
the pass with a `ModelError`; one that concerns a single question is an `AskError`, which the pass counts.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from lightsae.errors import ConfigError, ModelError

Message = Mapping[str, str]
_URL, _MODEL, _KEY = "LIGHTSAE_LLM_BASE_URL", "LIGHTSAE_LLM_MODEL", "LIGHTSAE_LLM_API_KEY"


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
        name: As it is shown beside a label.
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

    Before a question is sent, its greatest cost is set aside, estimated at 3 bytes a token for the prompt; so the cap
    holds unless a prompt has more tokens than that.

    Args:
        tokens: The cap; None for none.
    """

    def __init__(self, tokens: int | None = None) -> None:
        if tokens is not None and tokens < 0:
            raise ConfigError(f"The budget is {tokens} tokens; it must be 0 or more.")
        self.cap, self.spent, self._reserved = tokens, 0, 0
        self._booked = asyncio.Event()

    async def reserve(self, messages: Sequence[Message], max_tokens: int) -> int:
        """Set aside what a question may cost, and return it; waits for others where it may fit once they are answered.

        Raises:
            BudgetSpent: It is more than what is left, whatever the others come to.
        """
        most = estimated_tokens(messages) + max_tokens
        while self.cap is not None and self.spent + self._reserved + most > self.cap:
            if self.spent + most > self.cap:
                raise BudgetSpent(f"The budget of {self.cap} tokens is spent: {self.spent} were used.")
            self._booked.clear()
            await self._booked.wait()
        self._reserved += most
        return most

    def book(self, reserved: int, answer: Answer | None) -> None:
        """Replace what was set aside by what it cost; nothing, where no answer came."""
        self._reserved -= reserved
        if answer is not None:
            self.spent += answer.prompt_tokens + answer.completion_tokens
        self._booked.set()


def estimated_tokens(messages: Sequence[Message]) -> int:
    """Return about how many tokens a prompt has, at 3 bytes each: rather too many than too few."""
    return sum(len(m["content"].encode()) // 3 + 8 for m in messages)


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint (chat completions).

    The `openai` client itself retries what may pass (429, 5xx, timeouts, lost connections), waiting longer each time.

    Args:
        model: Name that the endpoint knows it by.
        base_url: Of the endpoint, such as `http://localhost:8000/v1`.
        api_key: Many local servers need none.
        concurrency: Questions that are under way at once.
        retries: Attempts after the first.
        timeout: Seconds that an attempt may take.

    Raises:
        ConfigError: The model or the address is neither given nor in the environment, or a number is out of range.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 120.0,
    ) -> None:
        self.name = model or os.environ.get(_MODEL, "")
        self.base_url = base_url or os.environ.get(_URL, "")
        # The client insists on a key; what follows is sent where the server asks for none.
        self._api_key = api_key or os.environ.get(_KEY) or "none"
        for value, what, key in ((self.name, "model", _MODEL), (self.base_url, "address", _URL)):
            if not value:
                raise ConfigError(f"The {what} of the endpoint that labels is not given; set {key} in the environment.")
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"{_URL} is {self.base_url!r}; write an address such as 'http://localhost:8000/v1'.")
        for number, what, least in ((concurrency, "concurrency", 1), (retries, "retries", 0)):
            if number < least:
                raise ConfigError(f"{what} of the endpoint is {number}; it must be at least {least}.")
        self.identity = f"{self.base_url.rstrip('/')} {self.name}"
        self._concurrency, self._retries, self._timeout = concurrency, retries, timeout
        self._client: Any = None
        self._options: dict[str, Any] = {"temperature": 0}
        self._length_key = "max_tokens"

    async def ask(self, messages: Sequence[Message], *, max_tokens: int) -> Answer:
        if self._client is None:
            self._open()
        async with self._places:
            return _answer_of(await self._send(messages, max_tokens), messages)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _open(self) -> None:
        # Here and not above: importing it takes a second, and a client belongs to one event loop.
        from openai import AsyncOpenAI

        self._client = AsyncOpenAI(
            api_key=self._api_key, base_url=self.base_url, max_retries=self._retries, timeout=self._timeout
        )
        self._places = asyncio.Semaphore(self._concurrency)

    async def _send(self, messages: Sequence[Message], max_tokens: int) -> Any:
        import openai

        told = [dict(m) for m in messages]
        while True:
            sent = (self._length_key, dict(self._options))
            try:
                return await self._client.chat.completions.create(
                    model=self.name, messages=told, **{sent[0]: max_tokens}, **sent[1]
                )
            except openai.BadRequestError as error:
                if not self._adapt(str(error), *sent):
                    raise AskError("refused (400)") from error
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise ModelError(f"{self.base_url} refuses the key ({error.status_code}); set {_KEY}.") from error
            except openai.NotFoundError as error:
                raise ModelError(
                    f"{self.base_url} has no model {self.name!r}, or is no such endpoint (404); set {_MODEL} and "
                    f"{_URL}, which usually ends with /v1."
                ) from error
            except openai.APITimeoutError as error:
                raise AskError("timeout") from error
            except openai.APIConnectionError as error:
                raise ModelError(f"{self.base_url} cannot be reached; start the server, or set {_URL}.") from error
            except openai.APIStatusError as error:
                kind = "rate limit" if error.status_code == 429 else "server error"
                raise AskError(f"{kind} ({error.status_code})") from error
            except (openai.APIError, ValueError) as error:  # a body that is no JSON, or not what was announced
                raise AskError("not a chat completion") from error

    def _adapt(self, message: str, length_key: str, options: dict[str, Any]) -> bool:
        """Give up an option that the model does not take; return whether that is worth another try.

        Some models want `max_completion_tokens` for `max_tokens`, some their own temperature alone.
        """
        if length_key == "max_tokens" and "max_tokens" in message:
            self._length_key = "max_completion_tokens"
        elif "temperature" in options and "temperature" in message:
            self._options = {}
        else:
            return False
        return True


def _answer_of(completion: Any, messages: Sequence[Message]) -> Answer:
    try:
        choice = completion.choices[0]
        text, finish = choice.message.content, choice.finish_reason
    except (AttributeError, TypeError, IndexError) as error:
        raise AskError("not a chat completion") from error
    if not isinstance(text, str) or not text.strip():
        # A model that thinks at length has said nothing yet when its tokens are used up.
        raise AskError("cut off" if finish == "length" else "empty answer")
    usage = getattr(completion, "usage", None)
    prompt, said = (getattr(usage, key, None) for key in ("prompt_tokens", "completion_tokens"))
    estimate = len(text.encode()) // 3 + 8
    return Answer(
        text,
        prompt if isinstance(prompt, int) else estimated_tokens(messages),
        said if isinstance(said, int) else estimate,
    )


def open_judge(spec: str | None = None, **endpoint: Any) -> Judge:
    """Return the judge that a user names.

    Args:
        spec: `hf:FOLDER` or `hf:HUB/NAME` for a local model; else the model's name at the endpoint, None for the one in
            the environment.
        **endpoint: Further settings of `EndpointJudge`.

    Raises:
        ConfigError: It is not described well enough.
        ModelError: The local model cannot be loaded.
    """
    if spec is not None and spec.startswith("hf:"):
        # Here and not above: an endpoint needs no transformers, and the module below this one.
        from lightsae.analysis.labels.llm.local_judge import LocalJudge

        return LocalJudge(spec.removeprefix("hf:"))
    return EndpointJudge(spec, **endpoint)
