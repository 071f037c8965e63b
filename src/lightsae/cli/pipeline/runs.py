"""What was done in a pipeline's folder, what is to do, and the doing of it.

OUT/pipeline.json holds for every step all that it depends on as flat `setting: value` pairs: its options, what the
files say that they name, the hashes of what it reads, the version of lightsae. `done` is its last complete run, `begun`
one that did not come to its end. A step is done if its outputs exist and none of the pairs has changed.
"""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lightsae.cli.pipeline.steps import MAKES, NEEDS, OUTPUTS, Step
from lightsae.errors import ConfigError, FormatError
from lightsae.formats.files import find_folder, hash_file, shown, write_json
from lightsae.formats.saved_sae import SavedSAE
from lightsae.parsing import read_json
from lightsae.version import version

_GOES_ON = "goes on where it was stopped"
_STATE, _FORMAT = "pipeline.json", 1


@dataclass(frozen=True)
class Run:
    """A run of a step, complete or begun.

    Attributes:
        folder: Of its outputs, within that of the pipeline.
        inputs: All that it depends on.
        before: Hash of the first output that the last complete run left in this folder; None: there was none.
    """

    folder: str
    inputs: dict[str, str]
    before: str | None = None


class Pipeline:
    """The steps to do in a folder, and what was done there.

    Args:
        out: The folder.
        steps: In their order.
        run: The run to start from, if fit is left out.

    Raises:
        FormatError: The folder's pipeline.json is damaged, or was written by a newer version.
    """

    def __init__(self, out: Path, steps: dict[str, Step], run: str | None) -> None:
        self.out, self.steps, self._run, self._path = out, steps, run, out / _STATE
        self.done: dict[str, Run] = {}
        self.begun: dict[str, Run] = {}
        if not self._path.exists():
            return
        try:
            state = read_json(self._path)
            newer = state["format"] > _FORMAT
            for runs, kind in ((self.done, "done"), (self.begun, "begun")):
                runs |= {name: _run(values) for name, values in state[kind].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{shown(self._path)!r} cannot be read; delete it, and every step runs again.") from error
        if newer:
            raise FormatError(f"{shown(self._path)!r} was written by a newer lightsae: pip install --upgrade lightsae")

    def plan(self, force: str | None) -> dict[str, tuple[str | None, list[str]]]:
        """Return for every step why it is to run, None if it is done, and what is typed after `lightsae`.

        Raises:
            ConfigError: A step needs the result of one that is left out and was never done.
            FormatError: A result that a step needs is damaged.
        """
        reasons: dict[str, str | None] = {}
        plan = {}
        for name in self.steps:
            before = NEEDS[name] or ""
            if name == "panel" and "interpret" not in self.steps and reasons.get("fit") is not None:
                raise ConfigError(
                    "interpret is left out, but panel needs a dictionary of the SAE that fit is to train."
                )
            reasons[name] = f"changed: {before}" if reasons.get(before) is not None else self._reason(name)
            if name == force:
                reasons[name] = "forced"
            plan[name] = reasons[name], self._command(name, reasons)
        return plan

    def run_step(self, name: str, reason: str | None, command: Sequence[str]) -> int:
        """Run one step to its end and remember it, or find it done; return its exit code."""
        if reason is None:
            if name in self.begun and self.begun[name].folder == self.done[name].folder:
                # It was stopped before it replaced anything.
                del self.begun[name]
                self._write()
            return 0
        if reason != _GOES_ON:
            folder = self._next_folder(name)
            # A run that was killed here may have replaced what the last complete one left.
            before = self.begun[name].before if name in self.begun else self._hash(name, folder)
            self.begun[name] = Run(folder, self._inputs(name), before)
        self._write()
        if code := run_command(command):
            return code
        if (missing := self._missing(name, self.begun[name].folder)) is not None:
            raise ConfigError(f"{name} ended well, but {missing} is not there; a setting of it sends it elsewhere.")
        self.done[name] = self.begun.pop(name)
        self._write()
        return 0

    def place(self, name: str) -> str:
        """Return where the outputs of a step are that is done."""
        return shown(self.out / self.done[name].folder)

    def _write(self) -> None:
        runs = {kind: {name: asdict(run) for name, run in getattr(self, kind).items()} for kind in ("done", "begun")}
        write_json(self._path, {"format": _FORMAT, **runs}, ascii_only=True)

    def _reason(self, name: str) -> str | None:
        done, begun, inputs = self.done.get(name), self.begun.get(name), self._inputs(name)
        if begun is not None and begun.inputs == inputs:
            can_go_on = name == "fit" and (self.out / begun.folder / "checkpoints" / "last.ckpt").is_file()
            return _GOES_ON if can_go_on else "not done"
        if done is None:
            return "not done"
        # A run with other settings may have been killed after it replaced the outputs.
        if begun is not None and begun.folder == done.folder and begun.before != self._hash(name, done.folder):
            return "not done"
        changed = (key for key in {**done.inputs, **inputs} if done.inputs.get(key) != inputs.get(key))
        first = next(changed, None) or self._missing(name, done.folder)
        return None if first is None else f"changed: {first}"

    def _inputs(self, name: str) -> dict[str, str]:
        """Return all that a step depends on, as things are now, as flat pairs."""
        inputs = {**self.steps[name].settings(), "lightsae": version()}
        if name != "fit":
            inputs["the SAE"] = SavedSAE.open(self._run_folder() / "sae").sha256
        if name == "panel":
            inputs["the dictionary"] = _dictionary_id(self.out / "dictionary")
        return inputs

    def _run_folder(self) -> Path:
        if self._run is not None:
            return Path(self._run)
        if "fit" not in self.done:
            raise ConfigError("fit is left out; name a run whose dictionary to use: --run lightning_logs/version_N")
        return self.out / self.done["fit"].folder

    def _outputs(self, name: str, folder: str) -> list[Path]:
        """Return where the outputs of a step are or would be, wherever a replacement that was killed left them."""
        paths = [self.out / folder / output for output in OUTPUTS[name]]
        return [(find_folder(path.parent) or path.parent) / path.name for path in paths]

    def _missing(self, name: str, folder: str) -> str | None:
        """Return the first of a step's outputs that does not exist."""
        return next((shown(path) for path in self._outputs(name, folder) if not path.is_file()), None)

    def _hash(self, name: str, folder: str) -> str | None:
        path = self._outputs(name, folder)[0]
        return hash_file(path) if path.is_file() else None

    def _command(self, name: str, reasons: Mapping[str, str | None]) -> list[str]:
        words, root = self.steps[name].words(), ["--trainer.default_root_dir", str(self.out)]
        if name == "fit" and reasons["fit"] != _GOES_ON:
            return [name, *words, *root]
        if (fit := reasons.get("fit")) is None:
            run = self._run_folder()
        else:
            # What is to be trained has no folder yet.
            run = self.out / (self.begun["fit"].folder if fit == _GOES_ON else self._next_folder("fit"))
        of_run = ["--config", f"{run}/config.yaml", "--ckpt_path", "last"]
        if name == "fit":
            return [name, *of_run]
        if name == "validate":
            return [name, *of_run, *words, *root]
        dictionary = ["--dictionary", str(self.out / "dictionary")] if name == "panel" else []
        return [name, "--sae", f"{run}/sae", *dictionary, "--out", str(self.out / MAKES[name]), *words]

    def _next_folder(self, name: str) -> str:
        """Return where the outputs of a step go, within `out`; of fit and validate, where Lightning logs next."""
        if name in ("interpret", "panel"):
            return MAKES[name]
        numbers = [path.name.removeprefix("version_") for path in (self.out / "lightning_logs").glob("version_*")]
        return f"lightning_logs/version_{max([int(number) for number in numbers if number.isdigit()], default=-1) + 1}"


def _run(values: Mapping[str, Any]) -> Run:
    run = Run(**values)
    texts = [run.folder, *run.inputs.values(), *([] if run.before is None else [run.before])]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(values)
    return run


def _dictionary_id(folder: Path) -> str:
    place = find_folder(folder)
    if place is None:
        raise ConfigError(f"interpret is left out, but panel needs {shown(folder)!r}, which does not exist.")
    try:
        return str(read_json(place / "dictionary.json")["id"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{shown(folder)!r} is no whole feature dictionary; run it again: --force interpret"
        ) from error


def run_command(command: Sequence[str]) -> int:
    """Run `lightsae COMMAND` on this terminal, and wait for its end whatever signals come; return its exit code.

    Ctrl-C reaches both processes, and the command knows best what to do; a signal that came to this one is passed on.
    """
    received: list[int] = []
    child: list[subprocess.Popen[bytes]] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if child and (number == signal.SIGTERM or not sys.stdin.isatty()):
            child[0].send_signal(number)

    # A handler and not SIG_IGN, which the child would inherit.
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child.append(subprocess.Popen([sys.executable, "-P", "-m", "lightsae", *command]))
        code = child[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:
        return 128 - code
    return code if code or not received else 128 + received[0]
