"""`lightsae pipeline`: fit, validate, interpret and panel in one go; what is done is skipped.

Each step is the command that a user would type, printed, in a process of its own and on the same terminal.
"""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from lightsae.cli.commands.pipeline_plan import GOES_ON, NEEDS, Pipeline, Record, State, Step, flatten
from lightsae.cli.settings.command import CommandParser
from lightsae.cli.settings.typed import check_config_files, config_files
from lightsae.errors import ConfigError, LightsaeError, did_you_mean
from lightsae.formats.files import explain_os_errors, shown

# The settings of each step that the pipeline sets itself.
_OWN = {
    "fit": ("trainer.default_root_dir", "trainer.logger", "ckpt_path"),
    "validate": ("config", "trainer.default_root_dir", "trainer.logger", "ckpt_path"),
    "interpret": ("sae", "out"),
    "panel": ("sae", "dictionary", "out"),
}
# Exit codes of a step that Ctrl-C or SIGTERM ended.
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_EXAMPLE = "lightsae pipeline --config configs/pipelines/builtin.yaml"
_DESCRIPTION = (
    "Run fit, validate, interpret and panel in one go. Each step is an ordinary command, printed before it runs.\n\n"
    "A step is skipped where its outputs exist and its settings, files they name and what it reads are those of the "
    "last time; a training that was stopped goes on from its checkpoint. Where a step runs again, those that read its "
    "result do, too. Texts and models that a setting names are taken to be unchanged: --force STEP where they are not."
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
    parser.add_argument("--run", type=str | None, help="A run to start from, where fit is left out.")
    settings: Any = dict[str, Any] | bool | None
    parser.add_argument("--fit", type=settings, help="Settings of fit, `config` among them; null leaves it out.")
    parser.add_argument("--validate", type=settings, help="Settings of validate, {} for none; null leaves it out.")
    parser.add_argument("--interpret", type=settings, help="Settings of interpret; null leaves it out.")
    parser.add_argument("--panel", type=settings, help="Settings of panel, `panel` among them; null leaves it out.")
    parser.add_argument("--force", type=str | None, help="Run this step again, and those that read its result.")
    parser.add_argument("--dry_run", action="store_true", help="Print what would run and what not, and why.")
    _check_keys(rest)
    given = parser.parse_args(rest)
    steps = {name: step for name in NEEDS if (step := _step(name, given[name], typed[name])) is not None}
    _check(given, steps)
    out = Path(given.out)
    pipeline = _pipeline(out, steps, given)
    plan = pipeline.plan(given.force)
    # The first one says at once what is wrong; the others would after hours.
    for name in [name for name, reason in plan.items() if reason is not None][1:]:
        _check_settings(steps[name])
    if given.dry_run:
        return _dry_run(pipeline, plan)
    with _alone(out):
        # Once more: another pipeline may have ended only now.
        pipeline = _pipeline(out, steps, given)
        plan = pipeline.plan(given.force)
        for name, reason in plan.items():
            if reason is None:
                _tell_skipped(pipeline, name)
            elif code := _run_step(pipeline, name, reason):
                again = shlex.join(["lightsae", "pipeline", *_without_force(args)])
                what = f"stopped at {name}." if code in _STOPPED else f"{name} failed; what was done before it is kept."
                print(f"lightsae: {what} Go on with the pipeline: {again}", file=sys.stderr)
                return code
        _tell_results(pipeline)
    return 0


def _pipeline(out: Path, steps: dict[str, Step], given: Any) -> Pipeline:
    return Pipeline(out, steps, None if given.run is None else Path(given.run), State.read(out))


def _split(args: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Return the options of the pipeline itself, and by step those written --STEP.SETTING."""
    rest: list[str] = []
    typed: dict[str, dict[str, str]] = {name: {} for name in NEEDS}
    words = iter(args)
    for word in words:
        key, given, value = word.partition("=")
        step, dot, setting = key.removeprefix("--").partition(".")
        if not key.startswith("--") or not dot or not setting:
            rest.append(word)
            continue
        if step not in NEEDS:
            raise ConfigError(f"{key}: {step!r} is no step; there are {', '.join(NEEDS)}.{did_you_mean(step, NEEDS)}")
        following = value if given else next(words, "--")
        if not given and following.startswith("--"):
            raise ConfigError(f"{key} stands without a value; write one after it.")
        typed[step][setting] = following
    return rest, typed


def _step(name: str, given: Any, typed: dict[str, str]) -> Step | None:
    """Return a step with the settings of the pipeline's file and those that were typed; None: it is left out."""
    if given in (None, False) and not typed:
        return None
    settings: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
    files = yaml.safe_load(typed["config"]) if "config" in typed else settings.get("config")
    files = [] if files is None else files if isinstance(files, list) else [files]
    options = flatten({key: value for key, value in settings.items() if key != "config"})
    options |= {key: value for key, value in typed.items() if key != "config"}
    # The panel's own file first: options win over it.
    options = dict(sorted(options.items(), key=lambda item: (name, item[0]) != ("panel", "panel")))
    for key in [*options, *(["config"] if files else [])]:
        if any(key == own or key.startswith(f"{own}.") for own in _OWN[name]):
            raise ConfigError(f"{name}.{key} is set, but the pipeline chooses it; leave it out.")
    step = Step(name, tuple(str(file) for file in files), options)
    try:
        check_config_files(step.words())
    except LightsaeError as error:
        raise type(error)(f"{name}: {error}") from None
    if name == "panel" and "panel" in options and not Path(options["panel"]).is_file():
        raise ConfigError(f"panel.panel is {options['panel']!r}, which does not exist.")
    return step


def _check_keys(typed: Sequence[str]) -> None:
    """Raise where a file names a step that does not exist; the parser lets an empty one pass."""
    known = ("out", "run", *NEEDS)
    for file in config_files(typed):
        for key in yaml.safe_load(file.read_text(encoding="utf-8")):
            if key not in known:
                raise ConfigError(f"{key} is no step or setting; write {', '.join(known)}.{did_you_mean(key, known)}")


def _check(given: Any, steps: dict[str, Step]) -> None:
    """Raise where the settings contradict one another."""
    if not given.out or (Path(given.out).exists() and not Path(given.out).is_dir()):
        raise ConfigError(f"out is {given.out!r}, which is {'a file' if given.out else 'no name'}; name a folder.")
    if not steps:
        raise ConfigError(f"There is no step to do. Write: {_EXAMPLE}")
    if given.force is not None and given.force not in steps:
        near = did_you_mean(given.force, steps)
        raise ConfigError(f"force is {given.force!r}, which is no step here; there are {', '.join(steps)}.{near}")
    if "panel" in steps and not {"panel", "prompts"} & set(steps["panel"].options):
        raise ConfigError("panel.panel is missing; write panel: {panel: configs/panels/builtin.yaml}")
    if "fit" not in steps:
        return
    if given.run is not None:
        raise ConfigError(f"run is {given.run!r}, but fit makes one itself; leave one of them out (--fit null).")
    if not steps["fit"].files:
        raise ConfigError("fit.config is missing; write fit: {config: configs/quickstart.yaml}")
    told = steps["fit"].settings()
    if any(key.startswith("trainer.logger.") for key in told) or told.get("trainer.logger", "null") not in (
        "null",
        "true",
    ):
        raise ConfigError("trainer.logger is set in fit's files, but the pipeline chooses it; leave it out.")
    several = next((key for key in ("model.saes", "model.grid") if any(k.startswith(f"{key}.") for k in told)), None)
    if several is not None and {"interpret", "panel"} & set(steps):
        raise ConfigError(
            f"fit's {several} asks for several dictionaries; interpret and panel take one: set model.sae."
        )


def _check_settings(step: Step) -> None:
    """Raise where a step that is only to run later has a setting that it does not know."""
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
        raise type(error)(f"{step.name}: {error}") from None


def _dry_run(pipeline: Pipeline, plan: dict[str, str | None]) -> int:
    # What is to be trained has no folder yet.
    new = plan.get("fit")
    run = pipeline.out / (pipeline.state.begun["fit"].folder if new == GOES_ON else pipeline.folder("fit"))
    for name, reason in plan.items():
        if reason is None:
            _tell_skipped(pipeline, name)
        else:
            _tell(name, reason, pipeline.command(name, reason, run if new is not None else pipeline.run()))
    return 0


def _tell(name: str, reason: str, command: Sequence[str]) -> None:
    # Before the step writes to the same terminal.
    print(f"{name:<10}{reason}\n  lightsae {shlex.join(command)}", flush=True)


def _tell_skipped(pipeline: Pipeline, name: str) -> None:
    where = shown(pipeline.out / pipeline.state.done[name].folder)
    print(f"{name:<10}skipped: done ({where}; its settings and what it reads are the same)", flush=True)


def _tell_results(pipeline: Pipeline) -> None:
    words = {"fit": "run", "validate": "validation", "interpret": "dictionary", "panel": "panel"}
    for name in pipeline.steps:
        print(f"{words[name]:<14}{shown(pipeline.out / pipeline.state.done[name].folder)}/")


def _run_step(pipeline: Pipeline, name: str, reason: str) -> int:
    """Run one step to its end and remember it; return its exit code."""
    state = pipeline.state
    record = state.begun[name] if reason == GOES_ON else Record(pipeline.folder(name), pipeline.inputs(name))
    command = pipeline.command(name, reason, Path() if name == "fit" else pipeline.run())
    _tell(name, reason, command)
    state.begin(name, record)
    if code := run_command(command):
        return code
    if (missing := pipeline.missing(name, record.folder)) is not None:
        raise ConfigError(f"{name} ended well, but {shown(missing)} is not there; a setting of it sends it elsewhere.")
    state.finish(name)
    return 0


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


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system lets go of when this process ends, however it does.

    Raises:
        ConfigError: Another pipeline holds it.
    """
    with explain_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / ".pipeline.lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"out is {str(out)!r}, where a pipeline is at work; wait, or name another.") from None
        yield
    finally:
        os.close(lock)


def _without_force(args: Sequence[str]) -> list[str]:
    """Return what to type in order to go on: a step that was forced and is done is not to run once more."""
    kept: list[str] = []
    for place, word in enumerate(args):
        is_value = place > 0 and args[place - 1] == "--force"
        if not is_value and word != "--force" and not word.startswith("--force="):
            kept.append(word)
    return kept
