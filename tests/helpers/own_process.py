"""`lightsae` in processes of their own, forked from one that has imported it all.

Importing torch and Lightning takes several times as long as a run of the tests. All that differs from
`python -m lightsae` is that this is done: working folder, environment, arguments, signals and exit code are its own.
So are those of a second rank: where Lightning's launcher starts one, a child of the run, forked before it began,
becomes that rank.
"""

import fcntl
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies.launchers import subprocess_script

PRELOAD = ["lightsae.cli.training.training_cli", "lightsae.training.module", "lightsae.lm.load", "helpers.own_process"]


def start(
    args: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path, *, second_rank: bool = False
) -> BaseProcess:
    """Start `lightsae ARGS` in a folder; what it prints goes to two files.

    Args:
        second_rank: Lightning may start a second process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # read once, when torch is imported
        forkserver.ensure_running()
    process = context.Process(target=_run, args=(args, str(folder), environment, str(out), str(err), second_rank))
    process.start()
    return process


def finish(
    args: list[str], folder: Path, environment: dict[str, str], *, second_rank: bool = False
) -> "subprocess.CompletedProcess[str]":
    """Run `lightsae ARGS` to its end, as `subprocess.run` would; see `start`."""
    out, err = folder / ".stdout", folder / ".stderr"
    process = start(args, folder, environment, out, err, second_rank=second_rank)
    process.join(240)
    if process.exitcode is None:
        process.kill()
        process.join()
        pytest.fail(f"lightsae {args[0]} had not ended after 240 seconds:\n{err.read_text()[-3000:]}")
    with err.open() as stream:
        # Held by all that write there: a process that this one started may have something left to say.
        fcntl.flock(stream, fcntl.LOCK_EX)
    done = subprocess.CompletedProcess(args, process.exitcode, out.read_text(), err.read_text())
    out.unlink()
    err.unlink()
    return done


def _run(args: list[str], folder: str, environment: dict[str, str], out: str, err: str, second_rank: bool) -> None:
    os.chdir(folder)
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY)
        os.dup2(opened, number)
        os.close(opened)
    fcntl.flock(2, fcntl.LOCK_SH)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    if second_rank:
        subprocess_script.subprocess = SimpleNamespace(Popen=_Waiting())
    _become(args, environment)


def _become(args: list[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for folder_on_path in reversed(environment.get("PYTHONPATH", "").split(os.pathsep)):
        sys.path.insert(0, folder_on_path)
    sys.argv = ["lightsae", *args]
    runpy.run_module("lightsae", run_name="__main__", alter_sys=True)


class _Waiting:
    """Stands for `subprocess.Popen`: a child that waits for what to run, and ends where nobody says so."""

    def __init__(self) -> None:
        told, self._tell = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            os.close(told)
            return
        os.close(self._tell)
        with open(told) as lines:
            line = lines.read()
        if not line:
            os._exit(0)
        command, environment = json.loads(line)
        assert command[:3] == [sys.executable, "-m", "lightsae.__main__"], command
        try:
            _become(command[3:], environment)
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        os._exit(0)

    def __call__(self, command: list[str], *, env: dict[str, str], cwd: str | None) -> "_Waiting":
        with open(self._tell, "w") as told:
            json.dump((command, env), told)
        return self

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        return self._wait(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, options)) != (0, 0):
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode
