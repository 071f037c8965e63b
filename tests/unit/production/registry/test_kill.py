import subprocess
import sys
from pathlib import Path

from helpers import registry_killed


def test_a_kill_at_any_moment_leaves_the_registry_as_before_or_after(tmp_path: Path) -> None:
    program = Path(registry_killed.__file__)
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    kills = dict(line.split() for line in done.stdout.splitlines())
    # Every file and folder of a version is made durable, and then the two of the log.
    assert int(kills["publish"]) > 20
    assert int(kills["promote"]) >= 8
