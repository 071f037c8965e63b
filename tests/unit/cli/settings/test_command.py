"""What the commands share: options from a signature, fit's names for them, and progress."""

import io
import re
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightsae.analysis.reading.loaded_sae import TextSettings
from lightsae.cli.settings.command import Bars, check_file, command
from lightsae.errors import ConfigError

RECEIVED: list[Any] = []


@command("--sae DIR [OPTIONS]", ["lightsae read --sae x"])
def run_read(sae: str, text: TextSettings, tokens: int = 5) -> None:
    """Read a text.

    And think about it.

    Args:
        sae: Which SAE.
        text: Not shown.
        tokens: How many.
    """
    RECEIVED.append((sae, text, tokens))


@pytest.fixture
def received() -> Any:
    """Return what the command is called with for these options."""
    RECEIVED.clear()

    def run(*args: str) -> Any:
        assert run_read(["--sae", "x", *args]) == 0
        return RECEIVED.pop()

    return run


def test_a_command_is_its_signature(received: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert received() == ("x", TextSettings(), 5)
    assert received("--tokens", "7", "--model", "m") == ("x", TextSettings(model="m"), 7)
    with pytest.raises(SystemExit) as end:
        run_read(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: lightsae read --sae DIR [OPTIONS] Read a text. And think about it. options:")
    assert "--sae TEXT Which SAE. (required)" in text
    assert "--tokens INT How many. (default: 5)" in text
    assert "Not shown" not in text
    assert "--data.model" in text
    with pytest.raises(ConfigError, match=r"^sae is missing\. Write: lightsae read --sae DIR \[OPTIONS\]$"):
        run_read([])


@pytest.mark.parametrize("option", ["--data.model", "--model"])
@pytest.mark.parametrize("joined", [True, False])
def test_both_names_of_a_setting_do(option: str, joined: bool, received: Any) -> None:
    _, text, _ = received(*([f"{option}=m"] if joined else [option, "m"]), "--data.context_size", "16")
    assert text == TextSettings(model="m", context_size=16)


def test_of_two_names_the_later_wins(received: Any) -> None:
    assert received("--model", "a", "--data.model", "b")[1].model == "b"
    assert received("--data.model", "a", "--model", "b")[1].model == "b"


@pytest.mark.parametrize("text", ["data: {model: m, context_size: 16}", "model: m\ndata: {context_size: 16, model: n}"])
def test_both_names_do_in_a_file(text: str, received: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"tokens: 3\n{text}\n")
    sae, read, tokens = received("--config", str(file))
    assert (sae, read, tokens) == ("x", TextSettings(model="m", context_size=16), 3)
    assert received("--config", str(file), "--data.context_size", "8")[1].context_size == 8


@pytest.mark.parametrize("args", [("--data.modle", "m"), ("--data.model", "m", "--data.dateset", "d")])
def test_a_misspelt_name_of_fit_has_a_near_one(args: tuple[str, ...], received: Any) -> None:
    with pytest.raises(ConfigError, match=r"is not an option\. Did you mean '--data\.(model|dataset)'\?$"):
        received(*args)


def test_a_setting_of_fit_that_a_command_has_not(received: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: {model: m, batch_tokens: 3}")
    with pytest.raises(ConfigError, match=r"^data\.batch_tokens is not a setting\."):
        received("--config", str(file))


@pytest.mark.parametrize("command", ["interpret", "label", "predict", "drift", "steer", "panel", "serve"])
def test_every_command_that_reads_text_has_them(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = getattr(import_module(f"lightsae.cli.commands.{command}"), f"run_{command}")
    with pytest.raises(ConfigError, match=r"--data\.zzz is not an option|is missing"):
        run(["--data.zzz", "3"])
    with pytest.raises(SystemExit):
        run(["--data.model", "m", "--help"])
    assert "--data.model" in capsys.readouterr().out


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


def test_a_unit_says_how_many_are_done_per_second(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Bars(clock=clock, unit="tokens").stage("caching, resumed", 40_000) as done:
        for tokens in (20_000, 25_000, 30_000):
            clock.now += 25
            done(tokens)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "caching, resumed: 01:15 so far, 30,000 of 40,000, 200 tokens/s, 00:50 left"
    )
    stream = io.StringIO()
    bars = Bars(Console(file=stream, force_terminal=True, width=140), unit="tokens")
    with bars.stage("caching", 1000) as done:
        for tokens in (100, 500, 1000):
            done(tokens)
    assert re.search(r"[\d,]+ tokens/s", stream.getvalue())


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


def test_a_file_to_be_written_is_no_folder_and_ends_as_it_should(tmp_path: Path) -> None:
    check_file("out", None, ".json")
    check_file("out", str(tmp_path / "report.json"), ".json")
    (tmp_path / "folder.json").mkdir()
    for name in ("report.txt", "folder.json"):
        with pytest.raises(ConfigError, match=r"^out is '.*'; name a file that ends in \.json\.$"):
            check_file("out", str(tmp_path / name), ".json")
