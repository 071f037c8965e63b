"""A planted text in which feature i fires on word i, and a real HTTP server that answers like a model that can read."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from lightsae.analysis.labels.llm.examples import ScorePool

WORDS = [" cat", " dog", " red", " run", " sun", " sea", " oak", " ant", " ice", " fog"]
ROWS, CONTEXT = 120, 40


def planted_pool(first_document: int = 0, seed: int = 0, partial: int = 3) -> ScorePool:
    """Feature f fires on word f, in activations 1..9; feature `partial` only on every other of its words."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, len(WORDS), (ROWS, CONTEXT))
    # Every row is two documents, cut in the middle.
    halves = np.arange(CONTEXT) >= CONTEXT // 2
    documents = first_document + 2 * np.arange(ROWS)[:, None] + halves[None]
    places = [np.flatnonzero(tokens.ravel() == word)[:: 2 if word == partial else 1] for word in range(len(WORDS))]
    firings = np.concatenate(places)
    return ScorePool(
        tokens,
        documents,
        WORDS,
        firings,
        np.cumsum([0, *map(len, places)]),
        np.ones(tokens.size, bool),
        draw.uniform(1, 9, len(firings)),
    )


@pytest.fixture
def pool() -> ScorePool:
    return planted_pool()


def excerpts(user: str) -> list[str]:
    return [line.split(". ", 1)[1] for line in user.split("Excerpts:\n")[1].splitlines()]


def reader(system: str, user: str) -> str:
    """Answer as a model would that reads well: the label is the marked word, and verdicts follow from the label."""
    if "Name what the marked" in system:
        marked = re.findall(r"«([^»]*)»\{\d\}", user)
        return json.dumps({"label": f"the word {max(set(marked), key=marked.count).strip()}"})
    word = re.findall(r"the word (\w+)", user)[0]
    shown = excerpts(user)
    if '"choice"' in system:
        fits = [i for i, text in enumerate(shown, start=1) if word in text]
        return json.dumps({"choice": fits[0] if fits else 0})
    if "marked rightly" in system:
        fits = [i for i, t in enumerate(shown, 1) if set(re.findall(r"«([^»]*)»", t)) == {f" {word}"}]
    else:
        fits = [i for i, text in enumerate(shown, start=1) if word in text]
    return "Let me see.\n```json\n" + json.dumps({"matches": fits}) + "\n```"


class FakeServer:
    """An OpenAI-compatible server on the loopback, in a thread.

    `script` may answer a request first: it gets its number and returns (status, body, headers), or None.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.script: Callable[[int, dict[str, Any]], tuple[int, Any, dict[str, str]] | None] = lambda n, body: None
        self.say: Callable[[str, str], str] = reader
        self.usage: dict[str, int] | None = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        self.delay = 0.0
        self.under_way = self.most_under_way = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body["path"], body["key"] = self.path, self.headers["Authorization"]
                with lock:
                    outer.requests.append(body)
                    number = len(outer.requests)
                    outer.under_way += 1
                    outer.most_under_way = max(outer.most_under_way, outer.under_way)
                time.sleep(outer.delay)
                status, answer, headers = outer.script(number, body) or (200, outer.completion(body), {})
                with lock:
                    outer.under_way -= 1
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def completion(self, body: dict[str, Any], text: str | None = None, finish: str = "stop") -> dict[str, Any]:
        system, user = (m["content"] for m in body["messages"][:2]) if text is None else ("", "")
        message = {"role": "assistant", "content": self.say(system, user) if text is None else text}
        told = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        return told | {
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            **({"usage": self.usage} if self.usage else {}),
        }

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    for name in ("BASE_URL", "MODEL", "API_KEY"):
        monkeypatch.delenv(f"LIGHTSAE_LLM_{name}", raising=False)
    running = FakeServer()
    yield running
    running.stop()
