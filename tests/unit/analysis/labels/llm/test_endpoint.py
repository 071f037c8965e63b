import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightsae.analysis.labels.llm.endpoint import EndpointJudge, open_judge
from lightsae.analysis.labels.llm.judge import Answer, AskError, Budget, BudgetSpent, Judge
from lightsae.analysis.labels.llm.local_judge import LocalJudge
from lightsae.errors import ConfigError, ModelError

QUESTION = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
SOON = {"retry-after-ms": "10"}


def ask(judge: Judge, max_tokens: int = 5) -> Answer:
    async def once() -> Answer:
        try:
            return await judge.ask(QUESTION, max_tokens=max_tokens)
        finally:
            await judge.close()

    return asyncio.run(once())


def test_the_endpoint_of_the_environment_is_asked(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTSAE_LLM_BASE_URL", server.url)
    monkeypatch.setenv("LIGHTSAE_LLM_MODEL", "m")
    monkeypatch.setenv("LIGHTSAE_LLM_API_KEY", "secret")
    server.say = lambda system, user: f"{system}+{user}"
    assert ask(open_judge()) == Answer("s+u", 100, 10)
    (request,) = server.requests
    assert (request["path"], request["model"], request["key"]) == ("/v1/chat/completions", "m", "Bearer secret")
    assert (request["max_tokens"], request["temperature"]) == (5, 0)


def test_a_judge_answers_in_one_event_loop_after_the_other(server: Any) -> None:
    server.say = lambda system, user: "yes"
    judge = EndpointJudge("m", base_url=server.url)
    assert ask(judge) == ask(judge)


def test_busy_and_broken_servers_are_asked_again(server: Any) -> None:
    server.say = lambda system, user: "at last"
    server.script = lambda n, body: (429 if n == 1 else 503, {"error": {"message": "wait"}}, SOON) if n < 4 else None
    assert ask(EndpointJudge("m", base_url=server.url, retries=3)).text == "at last"
    assert len(server.requests) == 4


@pytest.mark.parametrize(("status", "kind"), [(500, "server error (500)"), (429, "rate limit (429)"), (418, "(418)")])
def test_a_failure_that_stays_concerns_its_question(server: Any, status: int, kind: str) -> None:
    server.script = lambda n, body: (status, {"error": {"message": "no"}}, SOON)
    with pytest.raises(AskError) as caught:
        ask(EndpointJudge("m", base_url=server.url, retries=1))
    assert kind in caught.value.kind


def test_a_slow_server_times_out(server: Any) -> None:
    server.delay = 0.4
    with pytest.raises(AskError, match="timeout"):
        ask(EndpointJudge("m", base_url=server.url, retries=0, timeout=0.1))


@pytest.mark.parametrize(
    "body", [b"<html>", b"{", b'{"choices": []}', b"[1]", b'"text"', b"null", b'{"choices": [{"message": null}]}']
)
def test_a_body_that_is_no_completion_is_a_failure(server: Any, body: bytes) -> None:
    server.script = lambda n, request: (200, body, {})
    with pytest.raises(AskError, match="not a chat completion"):
        ask(EndpointJudge("m", base_url=server.url, retries=0))


def test_thoughts_without_an_end_are_cut_off(server: Any) -> None:
    server.script = lambda n, body: (200, server.completion(body, text=" ", finish="length"), {})
    with pytest.raises(AskError, match="cut off"):
        ask(EndpointJudge("m", base_url=server.url))


def test_usage_that_is_not_told_is_estimated(server: Any) -> None:
    server.usage, server.say = None, lambda system, user: "x" * 300
    answer = ask(EndpointJudge("m", base_url=server.url))
    assert answer.prompt_tokens > 0
    assert 100 <= answer.completion_tokens <= 150


def test_options_that_a_model_refuses_are_given_up(server: Any) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        for option in ("temperature", "max_tokens"):
            if option in body:
                return 400, {"error": {"message": f"'{option}' is not supported"}}, {}
        return None

    server.script, server.say = script, lambda system, user: "fine"
    judge = EndpointJudge("m", base_url=server.url)
    assert ask(judge, max_tokens=7).text == "fine"
    assert server.requests[-1]["max_completion_tokens"] == 7
    server.requests.clear()
    ask(judge)
    assert len(server.requests) == 1  # it remembers


@pytest.mark.parametrize(("status", "says"), [(401, "LIGHTSAE_LLM_API_KEY"), (404, "no model 'm'")])
def test_what_would_meet_every_question_is_the_users_to_mend(server: Any, status: int, says: str) -> None:
    server.script = lambda n, body: (status, {"error": {"message": "no"}}, {})
    with pytest.raises(ModelError, match=says):
        ask(EndpointJudge("m", base_url=server.url))


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match=r"http://127\.0\.0\.1:9/v1 cannot be reached"):
        ask(EndpointJudge("m", base_url="http://127.0.0.1:9/v1", retries=0))


def test_settings_that_are_absent_or_wrong_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASE_URL", "MODEL"):
        monkeypatch.delenv(f"LIGHTSAE_LLM_{name}", raising=False)
    for settings, says in [
        ({"base_url": "http://x"}, "set LIGHTSAE_LLM_MODEL"),
        ({"model": "m"}, "set LIGHTSAE_LLM_BASE_URL"),
        ({"model": "m", "base_url": "localhost:8000"}, "http://localhost:8000/v1"),
        ({"model": "m", "base_url": "http://x", "concurrency": 0}, "concurrency of the endpoint is 0"),
    ]:
        with pytest.raises(ConfigError, match=says):
            EndpointJudge(**settings)  # type: ignore[arg-type]


def test_no_more_than_so_many_questions_are_under_way(server: Any) -> None:
    server.delay, server.say = 0.05, lambda system, user: "x"
    judge = EndpointJudge("m", base_url=server.url, concurrency=3)

    async def many() -> None:
        await asyncio.gather(*(judge.ask(QUESTION, max_tokens=5) for _ in range(12)))
        await judge.close()

    asyncio.run(many())
    assert server.most_under_way == 3


def test_a_budget_sets_the_greatest_cost_aside() -> None:
    async def spend() -> None:
        budget = Budget(60)
        first = await budget.reserve(QUESTION, 20)  # 16 for the prompt
        assert first == 36
        with pytest.raises(BudgetSpent, match="60"):
            await budget.reserve(QUESTION, 50)
        # One that may fit waits, and goes on once the first has cost less than was set aside.
        waiting = asyncio.create_task(budget.reserve(QUESTION, 20))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        budget.book(first, Answer("x", 3, 2))
        assert await waiting == 36
        assert budget.spent == 5
        budget.book(36, None)  # a question without an answer costs nothing
        assert await budget.reserve(QUESTION, 39) == 55
        waiting = asyncio.create_task(budget.reserve(QUESTION, 20))
        await asyncio.sleep(0.01)
        budget.book(55, Answer("x", 20, 20))
        with pytest.raises(BudgetSpent, match="45 were used"):
            await waiting

    asyncio.run(spend())


def test_a_local_model_answers_with_and_without_a_chat_template(make_model: Callable[..., Path]) -> None:
    judge = LocalJudge(str(make_model()))
    plain = ask(judge)
    assert judge.name.startswith("hf:/")
    assert 0 < plain.completion_tokens <= 5
    assert ask(judge) == plain  # greedy
    judge._tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}>"
    assert ask(judge).prompt_tokens == len("[system]s[user]u>")
    # A template that knows no system turn gets its words in the user's.
    judge._tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    assert ask(judge).prompt_tokens == len("s\n\nu")
    judge._tokenizer.chat_template = None
    with pytest.raises(AskError, match="longer than"):
        ask(judge, max_tokens=64)


def test_new_weights_in_the_same_folder_are_another_judge(make_model: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(make_model(), folder)
    before = LocalJudge(str(folder)).identity
    (folder / "model.safetensors").touch()
    assert LocalJudge(str(folder)).identity != before


def test_a_local_model_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="judge is '/nowhere'"):
        open_judge("hf:/nowhere")
