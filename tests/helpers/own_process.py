"""`lightsae` in processes of their own, forked from one that has imported it all.

Importing torch and Lightning takes several times as long as a run of the tests. All that differs from
`python -m lightsae` is that this is done: working folder, environment, arguments, signals and exit code are its own.
"""

import fcntl
import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

PRELOAD = ["lightsae.cli.training.training_cli", "lightsae.training.module", "lightsae.lm.load", "helpers.own_process"]


def start(args: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> BaseProcess:
    """Start `lightsae ARGS` in a folder; what it prints goes to two files."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # read once, when torch is imported
        forkserver.ensure_running()
    process = context.Process(target=_run, args=(args, str(folder), environment, str(out), str(err)))
    process.start()
    return process


def finish(args: list[str], folder: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run `lightsae ARGS` to its end, as `subprocess.run` would."""
    out, err = folder / ".stdout", folder / ".stderr"
    process = start(args, folder, environment, out, err)
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


def _run(args: list[str], folder: str, environment: dict[str, str], out: str, err: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY)
        os.dup2(opened, number)
        os.close(opened)
    fcntl.flock(2, fcntl.LOCK_SH)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    for folder_on_path in reversed(environment.get("PYTHONPATH", "").split(os.pathsep)):
        sys.path.insert(0, folder_on_path)
    sys.argv = ["lightsae", *args]
    runpy.run_module("lightsae", run_name="__main__", alter_sys=True)
