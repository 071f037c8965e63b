"""Reads inputs in a process of its own: a line of reader, seed and number in, a line of JSON out."""

import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

from fuzz.mutate import mutated
from fuzz.readers import READERS, Files, Reader

# What a reader may use beside twice its input: tables of parsers, buffers of compressors.
MEMORY = 256 << 20
_ADDRESSES = 8 << 30
Outcome = dict[str, Any]


class Worker:
    """Valid inputs are made, and read, once a reader."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._valid: dict[str, Files] = {}

    def run(self, name: str, seed: int, number: int) -> Outcome:
        """Return what became of one input: `right`, `refused` or `fault`."""
        reader = READERS[name]
        if name not in self._valid:
            made = self.folder / "valid"
            made.mkdir()
            reader.make(made)
            self._valid[name] = {
                path.relative_to(made).as_posix(): path.read_bytes()
                for path in sorted(made.rglob("*"))
                if path.is_file()
            }
            shutil.rmtree(made)
            # The first time, libraries load what they need.
            first = self._read(reader, self._valid[name])
            if first["outcome"] != "right":
                return first | {"outcome": "fault", "detail": f"the valid input: {first['detail']}"}
        return self._read(reader, input_of(reader, name, self._valid[name], seed, number))

    def _read(self, reader: Reader, files: Files) -> Outcome:
        folder = self.folder / "input"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if reader.sign is not None:
            with contextlib.suppress(Exception):
                reader.sign(folder)
        size = sum(map(len, files.values()))
        before = _reset_peak()
        outcome: Outcome = {"outcome": "right", "detail": ""}
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                reader.read(folder)
        except reader.refusals as error:
            said = error.as_typed() if hasattr(error, "as_typed") else str(error)
            outcome = {"outcome": "refused", "detail": said}
            if "\n" in said or not said or len(said) > 20_000:
                outcome = {"outcome": "fault", "detail": f"the message is no line: {said[:300]!r}"}
        except BaseException:
            outcome = {"outcome": "fault", "detail": traceback.format_exc(limit=-6)}
        used = _peak() - before
        if used > 2 * size + MEMORY:
            outcome = {"outcome": "fault", "detail": f"{used:,} bytes were used for an input of {size:,}"}
        shutil.rmtree(folder, ignore_errors=True)
        return outcome


def input_of(reader: Reader, name: str, valid: Files, seed: int, number: int) -> Files:
    """Return an input: the valid one with one of its files mutated."""
    draw = random.Random(f"{seed}/{name}/{number}")
    file = draw.choice([f for f in valid if reader.mutates(f)])
    return valid | {file: mutated(draw, valid[file], file)}


def _peak() -> int:
    return _status("VmHWM")


def _reset_peak() -> int:
    """Begin to count the peak of the memory anew, and return what is used now; 0 where the system can't tell."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field)), 0)


def main() -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore")
    # What a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder))
        for line in sys.stdin:
            name, seed, number = line.split()
            if not worker._valid:
                # A bomb ends in a MemoryError, and not the machine.
                used = _status("VmSize")
                resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESSES, used + _ADDRESSES))
            answers.write(json.dumps(worker.run(name, int(seed), int(number))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
