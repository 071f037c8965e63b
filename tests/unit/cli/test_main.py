"""The entry point: exit codes, and what is printed for each kind of end."""

import sys
from typing import Any

import pytest

from lightsae.callbacks import Interrupted
from lightsae.cli import main
from lightsae.errors import ConfigError


def ending_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: list[str]) -> int:
        raise error

    # The name `lightsae.cli.main` means the function; the module is found among those that are loaded.
    monkeypatch.setattr(sys.modules["lightsae.cli.main"], "_run", run)


def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    ending_with(ConfigError("two\nlines"), monkeypatch)
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert capsys.readouterr().err == "lightsae: error: two lines\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    ending_with(RuntimeError("a bug"), monkeypatch)
    with pytest.raises(RuntimeError, match="a bug"):
        main([])


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (Interrupted(15), 143), (Interrupted(2), 130)])
def test_signals(stop: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    ending_with(stop, monkeypatch)
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == code
    assert "stopped" in capsys.readouterr().err
