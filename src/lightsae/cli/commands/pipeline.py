"""`lightsae pipeline`: fit, validate, interpret and panel in one go; a step whose inputs are as they were is skipped.

Each step is the command that a user would type, printed, in a process of its own and on the same terminal.

OUT/pipeline.json holds for every step all that it depends on as flat `setting: value` pairs: its options, what the
files say that they name, the hashes of what it reads, the version of lightsae. `done` is its last complete run, `begun`
one that did not come to its end. A step is done if its outputs exist and none of the pairs has changed.
"""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from lightsae.cli.settings.command import CommandParser
from lightsae.cli.settings.typed import check_config_files, config_files
from lightsae.errors import ConfigError, FormatError, LightsaeError, did_you_mean
from lightsae.formats.files import find_folder, hash_file, shown, write_atomically
from lightsae.formats.saved_sae import SavedSAE
from lightsae.version import version

# Each step with the one whose result it reads; its outputs, the first of which tells one run from another; the settings
# that the pipeline chooses; what it makes; what its section may be, beside settings.
NEEDS = {"fit": None, "validate": "fit", "interpret": "fit", "panel": "interpret"}
_OUTPUTS = {
    "fit": ("sae/sae.json", "config.yaml"),
    "validate": ("validation.json",),
    "interpret": ("dictionary.json", "features.parquet"),
    "panel": ("panel.json", "panel.md"),
}
_OWN = {
    "fit": ("trainer.default_root_dir", "trainer.logger", "ckpt_path"),
    "validate": ("config", "trainer.default_root_dir", "trainer.logger", "ckpt_path"),
    "interpret": ("sae", "out"),
    "panel": ("sae", "dictionary", "out"),
}
_MAKES = {"fit": "run", "validate": "validation", "interpret": "dictionary", "panel": "panel"}
_TAKES = {"fit": ", `config` among them", "validate": ", {} for none", "interpret": "", "panel": ", `panel` among them"}
_GOES_ON = "goes on where it was stopped"
_STATE, _FORMAT = "pipeline.json", 1
_EXAMPLE = "lightsae pipeline --config configs/pipelines/builtin.yaml"
_DESCRIPTION = (
    "Run fit, validate, interpret and panel in one go. Each step is an ordinary command, printed before it runs.\n\n"
    "A step is skipped if its outputs exist and its settings, files they name and what it reads are those of the "
    "last time; a training that was stopped goes on from its checkpoint. If a step runs again, those that read its "
    "result do, too. Texts and models that a setting names are taken to be unchanged: --force STEP if they are not."
    "\n\nEvery setting of a step is an option here: --fit.trainer.max_steps 500, --interpret.tokens 50000."
)
_EXAMPLES = (
    _EXAMPLE,
    "lightsae pipeline --config FILE.yaml --fit.trainer.max_steps 500 --panel null",
    "lightsae pipeline --config FILE.yaml --force interpret --dry_run",
)


def run_pipeline(args: Sequence[str]) -> int:
    """Run what is not done. Returns 0, or the exit code of the step that failed."""
    rest, typed = _split(args)
    parser = CommandParser("pipeline", "--config FILE.yaml [OPTIONS]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("-c", "--config", action="config", help="The pipeline: a YAML file; options win over it.")
    parser.add_argument("--out", type=str, default="lightning_logs/pipeline", help="Folder for all that is written.")
    parser.add_argument("--run", type=str | None, help="A run to start from, if fit is left out.")
    settings: Any = dict[str, Any] | bool | None
    for name, more in _TAKES.items():
        parser.add_argument(f"--{name}", type=settings, help=f"Settings of {name}{more}; null leaves it out.")
    parser.add_argument("--force", type=str | None, help="Run this step again, and those that read its result.")
    parser.add_argument("--dry_run", action="store_true", help="Print what would run and what not, and why.")
    _check_keys(rest)
    parsed = parser.parse_args(rest)
    steps = {name: step for name in NEEDS if (step := _step(name, parsed[name], typed[name])) is not None}
    _check(parsed, steps)
    pipeline = Pipeline(Path(parsed.out), steps, parsed.run)
    plan = pipeline.plan(parsed.force)
    # The first one says at once what is wrong; the others would after hours.
    for name in [name for name, (reason, _) in plan.items() if reason is not None][1:]:
        _check_settings(steps[name])
    for name, (reason, words) in plan.items():
        if reason is None:
            print(f"{name:<10}done ({pipeline.place(name)})", flush=True)
        else:
            # Before the step writes to the same terminal.
            print(f"{name:<10}{reason}\n  lightsae {shlex.join(words)}", flush=True)
        if not parsed.dry_run and (code := pipeline.run_step(name, reason, words)):
            stopped = code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
            end = f"stopped at {name}." if stopped else f"{name} failed; what was done before it is kept."
            # A step that was forced and is done is not to run once more.
            kept = [w for w, last in zip(args, ["", *args], strict=False) if "--force" not in (last, w.split("=")[0])]
            print(f"lightsae: {end} Go on with the pipeline: lightsae pipeline {shlex.join(kept)}", file=sys.stderr)
            return code
    for name in () if parsed.dry_run else steps:
        print(f"{_MAKES[name]:<14}{pipeline.place(name)}/")
    return 0


@dataclass(frozen=True)
class Step:
    """A command with its settings.

    Attributes:
        name: The command.
        files: Given by --config, in order.
        options: Values by setting, as they are typed.
    """

    name: str
    files: tuple[str, ...]
    options: dict[str, str]

    def words(self) -> list[str]:
        """Return the settings as they are typed."""
        words = [word for file in self.files for word in ("--config", file)]
        for key, value in self.options.items():
            words += [f"--{key}={value}"] if value.startswith("-") else [f"--{key}", value]
        return words

    def settings(self) -> dict[str, str]:
        """Return what is set, flat: by the files, by the options, and in files that the options name."""
        settings = {"config": ", ".join(self.files)} if self.files else {}
        for file in self.files:
            settings |= _flat(_read_yaml(file))
        settings |= self.options
        for value in self.options.values():
            if value.endswith((".yaml", ".yml")) and Path(value).is_file():
                settings |= {f"{key} in {value}": inner for key, inner in _flat({"": _read_yaml(value)}).items()}
        return settings


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
            state = json.loads(self._path.read_text(encoding="utf-8"))
            newer = state["format"] > _FORMAT
            for runs, kind in ((self.done, "done"), (self.begun, "begun")):
                runs |= {name: Run(**values) for name, values in state[kind].items()}
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
        with write_atomically(self._path) as partial:
            partial.write_text(json.dumps({"format": _FORMAT, **runs}, indent=2) + "\n", encoding="utf-8")

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
        paths = [self.out / folder / output for output in _OUTPUTS[name]]
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
        return [name, "--sae", f"{run}/sae", *dictionary, "--out", str(self.out / _MAKES[name]), *words]

    def _next_folder(self, name: str) -> str:
        """Return where the outputs of a step go, within `out`; of fit and validate, where Lightning logs next."""
        if name in ("interpret", "panel"):
            return _MAKES[name]
        numbers = [path.name.removeprefix("version_") for path in (self.out / "lightning_logs").glob("version_*")]
        return f"lightning_logs/version_{max([int(number) for number in numbers if number.isdigit()], default=-1) + 1}"


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
        child.append(subprocess.Popen([sys.executable, "-m", "lightsae", *command]))
        code = child[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:
        return 128 - code
    return code if code or not received else 128 + received[0]


def _split(args: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Return the options of the pipeline itself, and by step those written --STEP.SETTING."""
    rest: list[str] = []
    typed: dict[str, dict[str, str]] = {name: {} for name in NEEDS}
    words = iter(args)
    for word in words:
        key, equals, value = word.partition("=")
        step, dot, setting = key.removeprefix("--").partition(".")
        if not key.startswith("--") or not dot or not setting:
            rest.append(word)
            continue
        if step not in NEEDS:
            raise ConfigError(f"{key}: {step!r} is no step; there are {', '.join(NEEDS)}.{did_you_mean(step, NEEDS)}")
        typed[step][setting] = value if equals else next(words, "--")
        if not equals and typed[step][setting].startswith("--"):
            raise ConfigError(f"{key} stands without a value; write one after it.")
    return rest, typed


def _step(name: str, section: Any, typed: dict[str, str]) -> Step | None:
    """Return a step with the settings of the pipeline's file and those that were typed; None: it is left out."""
    if section in (None, False) and not typed:
        return None
    settings: dict[str, Any] = dict(section) if isinstance(section, dict) else {}
    files = yaml.safe_load(typed["config"]) if "config" in typed else settings.get("config")
    files = [] if files is None else files if isinstance(files, list) else [files]
    options = {key: value for key, value in {**_flat(settings), **typed}.items() if key.partition(".")[0] != "config"}
    # The panel's own file first: options win over it.
    options = dict(sorted(options.items(), key=lambda item: (name, item[0]) != ("panel", "panel")))
    for key in [*options, *(["config"] if files else [])]:
        if any(key == own or key.startswith(f"{own}.") for own in _OWN[name]):
            raise ConfigError(f"{name}.{key} is set, but the pipeline chooses it; leave it out.")
    step = Step(name, tuple(str(file) for file in files), options)
    try:
        check_config_files(step.words())
    except LightsaeError as error:
        raise type(error)(f"{name}: {error.args[0]}") from None
    if name == "panel" and "panel" in options and not Path(options["panel"]).is_file():
        raise ConfigError(f"panel.panel is {options['panel']!r}, which does not exist.")
    return step


def _check_keys(typed: Sequence[str]) -> None:
    """Raise if a file names a step that does not exist; the parser lets an empty one pass."""
    known = ("out", "run", *NEEDS)
    for file in config_files(typed):
        for key in yaml.safe_load(file.read_text(encoding="utf-8")):
            if key not in known:
                raise ConfigError(f"{key} is no step or setting; write {', '.join(known)}.{did_you_mean(key, known)}")


def _check(parsed: Any, steps: dict[str, Step]) -> None:
    """Raise if the settings contradict one another."""
    if not parsed.out or (Path(parsed.out).exists() and not Path(parsed.out).is_dir()):
        raise ConfigError(f"out is {parsed.out!r}, which is {'a file' if parsed.out else 'no name'}; name a folder.")
    if not steps:
        raise ConfigError(f"There is no step to do. Write: {_EXAMPLE}")
    if parsed.force is not None and parsed.force not in steps:
        near = did_you_mean(parsed.force, steps)
        raise ConfigError(f"force is {parsed.force!r}, which is no step here; there are {', '.join(steps)}.{near}")
    if "panel" in steps and not {"panel", "prompts"} & set(steps["panel"].options):
        raise ConfigError("panel.panel is missing; write panel: {panel: configs/panels/builtin.yaml}")
    if "fit" not in steps:
        return
    if parsed.run is not None:
        raise ConfigError(f"run is {parsed.run!r}, but fit makes one itself; leave one of them out (--fit null).")
    if not steps["fit"].files:
        raise ConfigError("fit.config is missing; write fit: {config: configs/quickstart.yaml}")
    settings = steps["fit"].settings()
    loggers = [value for key, value in settings.items() if f"{key}.".startswith("trainer.logger.")]
    if any(value not in ("null", "true") for value in loggers):
        raise ConfigError("trainer.logger is set in fit's files, but the pipeline chooses it; leave it out.")
    several = next(
        (key for key in ("model.saes", "model.grid") if any(k.startswith(f"{key}.") for k in settings)), None
    )
    if several is not None and {"interpret", "panel"} & set(steps):
        raise ConfigError(f"fit's {several} asks for several SAEs; interpret and panel take one: set model.sae.")


def _check_settings(step: Step) -> None:
    """Raise if a step that is only to run later has a setting that it does not know."""
    if step.name not in ("interpret", "panel") or not step.words():
        return
    run = getattr(import_module(f"lightsae.cli.commands.{step.name}"), f"run_{step.name}")
    own = [word for key in _OWN[step.name] for word in (f"--{key}", "x")]
    try:
        with redirect_stdout(StringIO()):
            run([*own, *step.words(), "--print_config"])
    except SystemExit:
        return
    except LightsaeError as error:
        raise type(error)(f"{step.name}: {error.args[0]}") from None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `section.setting`, each with its value as it is typed."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, name)
        else:
            # json also writes null, true and numbers as YAML does.
            flat[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _read_yaml(file: str) -> Any:
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        raise ConfigError(f"{file!r} cannot be read as YAML.") from None


def _dictionary_id(folder: Path) -> str:
    place = find_folder(folder)
    if place is None:
        raise ConfigError(f"interpret is left out, but panel needs {shown(folder)!r}, which does not exist.")
    try:
        return str(json.loads((place / "dictionary.json").read_text(encoding="utf-8"))["id"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{shown(folder)!r} is no whole feature dictionary; run it again: --force interpret"
        ) from error
