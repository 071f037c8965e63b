"""Sinks: whole lines whatever happens, metrics, and one that fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.errors import ConfigError
from lightsae.lm import LanguageModel
from lightsae.production.monitor import Alarm, Event, Firing, JsonLines, Monitor, Prometheus, monitor
from lightsae.sae import SparseAutoencoder

FIRING = Firing(1.5, 3, "a «label»", 2.0, 0.5, 0.1, 9, "\ud83d\n", 0, 4, "prompt", 0, "r1")
ALARM = Alarm(2.5, 3, "a «label»", "left", "above", 0.3, 0.1, 0.2, 0.15, 1000, 5)


def test_lines_are_whole_json_and_appended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    for _ in range(2):
        sink = JsonLines(path)
        sink.write([FIRING, ALARM])
        # In the file at once, before anything is closed.
        lines = path.read_bytes().split(b"\n")
        sink.close()
    told = [json.loads(line) for line in lines[:-1]]
    assert [one["event"] for one in told] == ["firing", "alarm"] * 2
    assert told[0]["time"] == "1970-01-01T00:00:01.500+00:00"
    assert told[0]["token_text"] == FIRING.token_text
    assert told[1]["side"] == "above"
    assert lines[-1] == b""


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_half_a_line_is_cut_off_and_other_files_are_left_alone(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "events.jsonl"
    sink = JsonLines(path)
    sink.write([FIRING] * 30)
    sink.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    sink = JsonLines(path)
    sink.write([ALARM])
    sink.close()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["firing"] * 29 + ["alarm"]
    path.write_text("notes\nof somebody")
    with pytest.raises(ConfigError, match="something else than events"):
        JsonLines(path).write([ALARM])
    assert path.read_text() == "notes\nof somebody"


def test_a_write_that_fails_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    sink, write, calls = JsonLines(path), os.write, []

    def full(file: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) % 2 == 0:
            raise OSError(28, "No space left on device")
        return write(file, data[:20])

    sink.write([FIRING])
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ConfigError, match="no space is left"):
        sink.write([FIRING])
    monkeypatch.undo()
    sink.write([ALARM])
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["firing", "alarm"]


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = (
        "from lightsae.production.monitor.sinks import JsonLines\n"
        "from lightsae.production.monitor.events import Alarm\n"
        f"sink = JsonLines({str(path)!r})\n"
        "while True: sink.write([Alarm(0.0, 3, 'x' * 5000, 'left', 'above', .1, .1, .1, .1, 1, 1)] * 20)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not path.exists() or path.stat().st_size < 2_000_000:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    sink = JsonLines(path)
    sink.write([FIRING])
    sink.close()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()][-1] == "firing"


def test_a_failing_sink_does_not_stop_the_model(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, tokens: Tensor
) -> None:
    got: list[Event] = []
    monitors: list[Monitor] = []
    passes: list[Tensor] = []

    def broken(event: Event) -> None:
        raise KeyError("lost")

    def run(then: Callable[[], object]) -> None:
        with monitor(lm, dictionary, sae=sae, features=[3], thresholds={3: 0.0}, sinks=[broken, got.append]) as watch:
            monitors.append(watch)
            passes.extend(lm.logits(tokens) for _ in range(2))
            then()

    with pytest.raises(ConfigError, match=r"failed 2 times.*broken: KeyError: 'lost'") as raised:
        run(lambda: None)
    assert len(passes) == 2
    assert isinstance(raised.value.__cause__, KeyError)
    assert len(got) == monitors[0].summary().features[0].firings > 2
    assert monitors[0].summary().failures == 2
    assert "sinks failed 2 times" in str(monitors[0])
    # An error of the user's own goes first.
    with pytest.raises(ZeroDivisionError) as raised_inside:
        run(lambda: 1 / 0)
    assert "failed 2 times" in raised_inside.value.__notes__[0]


def test_prometheus(lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, tokens: Tensor) -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    for _ in range(2):
        with monitor(
            lm, dictionary, sae=sae, features=[3, 4], thresholds={3: 0.0, 4: 0.0}, sinks=Prometheus(registry)
        ) as watch:
            lm.logits(tokens)
    label = {"feature": "3", "label": dictionary.feature(3).row["label"]}
    seen = watch.summary().features[0]
    assert registry.get_sample_value("lightsae_tokens_total") == 2 * watch.tokens
    assert registry.get_sample_value("lightsae_firings_total", label) == 2 * seen.firings > 0
    assert registry.get_sample_value("lightsae_frequency", label) == pytest.approx(seen.frequency)
    assert registry.get_sample_value("lightsae_firing_of_max_count", label) == 2 * seen.firings
    for alarm, value in ((ALARM, 1), (Alarm(**(vars(ALARM) | {"state": "returned"})), 0)):
        Prometheus(registry).write([alarm])
        assert registry.get_sample_value("lightsae_drift", {"feature": "3", "label": "a «label»"}) == value
    assert b"lightsae_firings_total{" in client.generate_latest(registry)


def test_without_the_client_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'lightsae\[prometheus\]'"):
        Prometheus()
