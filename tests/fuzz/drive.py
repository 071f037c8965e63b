"""Drives workers: deals the inputs out, and notices a crash or a hang."""

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Far beyond what any reader needs, on a busy machine too.
HANGS_AFTER = 120.0


@dataclass
class Result:
    """What became of the inputs.

    Attributes:
        counts: By (reader, outcome).
        faults: Texts, one an input.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return the counts, a line per reader."""
        kinds = ("right", "refused", "fault")
        lines = [f"{'reader':<16}" + "".join(f"{kind:>10}" for kind in kinds)]
        for name in sorted({reader for reader, _ in self.counts}):
            lines.append(f"{name:<16}" + "".join(f"{self.counts[name, kind]:>10}" for kind in kinds))
        sums = [sum(n for (_, outcome), n in self.counts.items() if outcome == kind) for kind in kinds]
        return "\n".join([*lines, f"{sum(sums):<16}" + "".join(f"{n:>10}" for n in sums)])


def fuzz(names: Sequence[str], inputs: int, seed: int, *, numbers: Sequence[int] | None = None) -> Result:
    """Read mutated inputs.

    Args:
        names: The readers.
        inputs: How many, of all readers together; each gets at least one.
        seed: Of the inputs.
        numbers: These inputs of each reader instead.
    """
    result, worker = Result(), _Worker()
    share = range(max(1, round(inputs / len(names))))
    for name in names:
        for number in share if numbers is None else numbers:
            outcome = worker.run(name, seed, number)
            result.counts[name, outcome["outcome"]] += 1
            if outcome["outcome"] == "fault":
                again = f"python -m tests.fuzz --reader {name} --seed {seed} --number {number}"
                result.faults.append(f"{again}\n{outcome['detail']}")
    worker.close()
    return result


class _Worker:
    """A process that reads inputs; another takes its place where it crashes or hangs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, name: str, seed: int, number: int) -> dict[str, Any]:
        if self._process is None:
            root = Path(__file__).parents[1]
            paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fuzz.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name} {seed} {number}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], HANGS_AFTER)
        line = self._process.stdout.readline() if ready else ""
        if line:
            outcome: dict[str, Any] = json.loads(line)
            return outcome
        what = "it crashed" if ready else f"it hung for {HANGS_AFTER:g} s"
        self._process.kill()
        code = self._process.wait()
        self.close()
        return {"outcome": "fault", "detail": f"{what} (exit code {code})"}

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None
