"""What the commands share: progress bars, and lines where no terminal is."""

import io
import re
import threading
from typing import Any

import pytest
from rich.console import Console

from lightsae.cli.settings.command import Bars


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_at_the_beginning_and_then_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Bars(clock=clock).stage("contexts", 4000) as done:
        for batch in range(1, 9):
            clock.now += 7
            done(500 * batch)
    assert capsys.readouterr().err.splitlines() == [
        "contexts",
        "contexts: 00:21 so far, 1,500 of 4,000, 00:35 left",
        "contexts: 00:42 so far, 3,000 of 4,000, 00:14 left",
    ]


def test_a_resumed_stage_is_not_taken_to_be_fast(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Bars(clock=clock).stage("contexts, resumed", 4000) as done:
        for tokens in (3000, 3010, 3020):
            clock.now += 25
            done(tokens)
    first, *_, last = capsys.readouterr().err.splitlines()[1:]
    assert first == "contexts, resumed: 00:25 so far, 3,000 of 4,000"
    assert last.endswith("3,020 of 4,000, 40:50 left")


def test_a_line_also_of_a_stage_that_does_not_report(capsys: pytest.CaptureFixture[str]) -> None:
    written = threading.Event()

    class Quick(Bars):
        """Tells when a line was written after the first."""

    with Quick(line_seconds=0.05).stage("effects on logits", 1):
        shown = ""
        while shown.count("\n") < 3:
            written.wait(0.01)
            shown += capsys.readouterr().err
    assert re.fullmatch(r"effects on logits\n(effects on logits: 00:\d\d so far\n)+", shown)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_in_a_terminal_there_are_bars(monkeypatch: Any) -> None:
    stream = io.StringIO()
    with Bars(Console(file=stream, force_terminal=True, width=100)).stage("contexts", 10) as done:
        done(4)
    assert "10/10" in stream.getvalue()
    assert "so far" not in stream.getvalue()
