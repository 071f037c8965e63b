"""`lightsae pipeline`: fit, validate, interpret and panel in one go; a step whose inputs are as they were is skipped.

Each step is the command that a user would type, printed, in a process of its own and on the same terminal.
"""

import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from lightsae.cli.pipeline.runs import Pipeline
from lightsae.cli.pipeline.steps import MAKES, NEEDS, OWN, Step, step_of
from lightsae.cli.settings.command import CommandParser
from lightsae.cli.settings.typed import config_files
from lightsae.errors import ConfigError, LightsaeError, did_you_mean
from lightsae.parsing import read_yaml

# What a step's section may be, beside settings.
_TAKES = {"fit": ", `config` among them", "validate": ", {} for none", "interpret": "", "panel": ", `panel` among them"}
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
    steps = {name: step for name in NEEDS if (step := step_of(name, parsed[name], typed[name])) is not None}
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
        print(f"{MAKES[name]:<14}{pipeline.place(name)}/")
    return 0


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


def _check_keys(typed: Sequence[str]) -> None:
    """Raise if a file names a step that does not exist; the parser lets an empty one pass."""
    known = ("out", "run", *NEEDS)
    for file in config_files(typed):
        for key in read_yaml(file):
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
    own = [word for key in OWN[step.name] for word in (f"--{key}", "x")]
    try:
        with redirect_stdout(StringIO()):
            run([*own, *step.words(), "--print_config"])
    except SystemExit:
        return
    except LightsaeError as error:
        raise type(error)(f"{step.name}: {error.args[0]}") from None
