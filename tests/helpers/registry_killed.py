"""A program for test_kill: begins an action again and again, each time killed (SIGKILL) one system call later.

Before every call that makes something durable or visible (fsync, replace, rename, mkdir, and writing a file) the child
process kills itself. After each kill the registry is checked. Prints how many kills there were.
"""

import os
import pathlib
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.fake_versions import EASY, make_parts
from lightsae.production.registry import load_channel, promote, publish, verify
from lightsae.production.registry.store import open_registry

CALLS = [(os, name) for name in ("fsync", "replace", "rename", "mkdir")]
CALLS += [(shutil, "copyfile"), (pathlib.Path, "write_text"), (pathlib.Path, "write_bytes")]


def kill_at(number: int, marker: Path) -> None:
    """Replace the calls by ones that count, and kill the process before call `number`."""
    left = [number]

    def counting(name, real):
        def call(*args, **kwargs):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            result = real(*args, **kwargs)
            if name == "replace" and str(args[1]).endswith("channels.json"):
                marker.touch()
            return result

        return call

    for holder, name in CALLS:
        setattr(holder, name, counting(name, getattr(holder, name)))


def run_and_kill(number: int, marker: Path, action) -> bool:
    """Return whether the child was killed."""
    if (child := os.fork()) == 0:
        kill_at(number, marker)
        try:
            action()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the action failed"
    return False


def check(registry: Path, number: int, action, told) -> bool:
    """Run an action that is killed before its call `number`; return whether there was such a call."""
    marker = registry.with_name("committed")
    marker.unlink(missing_ok=True)
    before = told(registry)
    killed = run_and_kill(number, marker, action)
    committed = marker.exists()
    after = told(registry)
    assert (after != before) == committed, (number, before, after)
    found = verify(registry)
    assert found.problems == [], (number, found.problems)
    assert load_channel(registry, "production").version == after[1][-1]
    # The same again completes it, or finds it done, and leaves nothing behind.
    action()
    assert told(registry) != before, number
    found = verify(registry)
    assert (found.problems, found.notes) == ([], []), (number, found)
    assert not [p for p in registry.rglob(".p*") if p.name != ".lock"], number
    return killed


def main(folder: Path) -> None:
    easy = folder / "easy.yaml"
    easy.write_text(EASY)
    parts = make_parts(folder / "parts", seed=0)
    panel = {"panel": parts.report("panel")}
    start, here = folder / "start", folder / "work" / "registry"
    first = publish(start, parts.dictionary, parts.sae).version
    promote(start, first, "production", easy, why="x")
    both = folder / "both"
    shutil.copytree(start, both)
    second = publish(both, parts.dictionary, parts.sae, evidence=panel).version

    def told(registry):
        state = open_registry(registry)[1]
        return state.published, state.channels["production"]

    actions = {
        "publish": (start, lambda: publish(here, parts.dictionary, parts.sae, evidence=panel)),
        "promote": (both, lambda: promote(here, second, "production", easy, why="x")),
    }
    for name, (source, action) in actions.items():
        number = 0
        while True:
            shutil.rmtree(here.parent, ignore_errors=True)
            shutil.copytree(source, here)
            if not check(here, number, action, told):
                break
            number += 1
        print(name, number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
