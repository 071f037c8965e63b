"""Judges behind an OpenAI-compatible endpoint, and the choice between them and a local model.

Settings that are not given come from the environment: LIGHTSAE_LLM_BASE_URL, LIGHTSAE_LLM_MODEL, LIGHTSAE_LLM_API_KEY.
A failure that would meet every question alike (no such model, a wrong key, no connection) ends the pass with a
`ModelError`; one that concerns a single question is an `AskError`, which the pass counts.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from lightsae.analysis.labels.llm.judge import Answer, AskError, Judge, Message, estimated_tokens
from lightsae.errors import ConfigError, ModelError

_URL, _MODEL, _KEY = "LIGHTSAE_LLM_BASE_URL", "LIGHTSAE_LLM_MODEL", "LIGHTSAE_LLM_API_KEY"


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint (chat completions).

    The `openai` client itself retries what may pass (429, 5xx, timeouts, lost connections), waiting longer each time.

    Args:
        model: Its name at the endpoint.
        base_url: Address, such as `http://localhost:8000/v1`.
        api_key: Many local servers need none.
        concurrency: Questions under way at once.
        retries: Attempts after the first.
        timeout: Seconds per attempt.

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
        # The client insists on a key; this one is sent if the server asks for none.
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

        while True:
            length_key, options = self._length_key, dict(self._options)
            try:
                return await self._client.chat.completions.create(
                    model=self.name, messages=[dict(m) for m in messages], **{length_key: max_tokens}, **options
                )
            except openai.BadRequestError as error:
                if not self._adapt(str(error), length_key, options):
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
    prompt, answer = (getattr(usage, key, None) for key in ("prompt_tokens", "completion_tokens"))
    return Answer(
        text,
        prompt if isinstance(prompt, int) else estimated_tokens(messages),
        answer if isinstance(answer, int) else estimated_tokens([{"content": text}]),
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
