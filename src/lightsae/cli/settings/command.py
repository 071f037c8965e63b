"""What the commands beside `fit` and `validate` share: options from a function's signature, and progress bars."""

import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_loader
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from tqdm import tqdm

from lightsae.analysis.reading.loaded_sae import TextSettings
from lightsae.cli.settings.help import HelpFormatter
from lightsae.cli.settings.trusted import TRUST, check_trusted, load_yaml, restrict_classes
from lightsae.cli.settings.typed import options_of
from lightsae.cli.settings.wording import in_short
from lightsae.errors import ConfigError, FormatError, under
from lightsae.formats.files import find_folder
from lightsae.progress import LINE_SECONDS, Heartbeat

# Settings of the text that `fit` has under `data`; the device is the Trainer's there.
_FIT_NAMES = {f"data.{one.name}": one.name for one in fields(TextSettings) if one.name != "device"}


def _with_short_names(settings: Any) -> Any:
    """Return the settings of a file in which `data: {model: X}` stands for `model: X`, as in a file of `fit`."""
    section = settings.get("data") if isinstance(settings, dict) else None
    if not isinstance(section, dict):
        return settings
    unknown = {key: value for key, value in section.items() if f"data.{key}" not in _FIT_NAMES}
    rest = {key: value for key, value in settings.items() if key != "data"}
    known = {key: value for key, value in section.items() if key not in unknown}
    return known | rest | ({"data": unknown} if unknown else {})


set_loader("lightsae-command", lambda text: _with_short_names(load_yaml(text)), exceptions=(yaml.YAMLError,))


class CommandParser(ArgumentParser):
    """The parser of one command: options, a YAML file, examples; a mistake is one short message.

    Args:
        name: The command.
        usage: What stands after it.
        description: What it does.
        examples: Lines to copy.
    """

    def __init__(self, name: str, usage: str, description: str, examples: Sequence[str]) -> None:
        super().__init__(
            prog=f"lightsae {name}",
            usage=f"lightsae {name} {usage}",
            description=description,
            epilog="\n".join(["Examples:", "", *(f"  {line}" for line in examples)]),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        self.command, self.usage_line = name, usage

    def add_settings(self, kind: type) -> None:
        """Add a dataclass's fields as options of their own; those of model and text also under the names of `fit`."""
        self.add_class_arguments(kind)
        own = {one.name for one in fields(kind)}
        aliases = {name: short for name, short in _FIT_NAMES.items() if short in own}
        for name, short in aliases.items():
            self._option_string_actions[f"--{name}"] = self._option_string_actions[f"--{short}"]
        if aliases:
            self.parser_mode = "lightsae-command"
            group = self._action_groups[-1]
            if kind is TextSettings:
                group.title = "Model and text, where they are not those of the training"
            group.description = "The names that fit has for them do as well: --data.model, ..."

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if "required" in message:
            missing = message.rpartition(":")[2].strip() or message
            raise ConfigError(f"{missing} is missing. Write: lightsae {self.command} {self.usage_line}") from None
        keys = [option.lstrip("-") for option in self._option_string_actions if option.startswith("--")]
        raise ConfigError(in_short(message, keys, {})) from None


def command(
    usage: str,
    examples: Sequence[str],
    *,
    config: Sequence[str] = ("-c", "--config"),
    positional: bool = False,
    words: str | None = None,
) -> Callable[[Callable[..., None]], Callable[[Sequence[str]], int]]:
    """Make a command of a function `run_NAME`: its signature gives the options, its docstring the help.

    Dataclasses among its parameters become options for each of their fields.

    Args:
        usage: What stands after the command's name in a line of usage.
        examples: Lines to copy.
        config: Option that reads a YAML file.
        positional: Whether the parameters without a default are written without a name.
        words: The parameter, a list, that the words before the first option are for.
    """

    def decorate(function: Callable[..., None]) -> Callable[[Sequence[str]], int]:
        hints = {name: hint for name, hint in get_type_hints(function).items() if name != "return"}
        flat = {name: kind for name, kind in hints.items() if is_dataclass(kind)}

        def run(args: Sequence[str]) -> int:
            restrict_classes(None)
            description = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
            parser = CommandParser(function.__name__.removeprefix("run_"), usage, description, examples)
            parser.add_argument(*config, action="config", help="Settings from a YAML file; options win over it.")
            parser.add_function_arguments(function, as_group=False, as_positional=positional, skip=set(flat))
            for kind in flat.values():
                parser.add_settings(kind)  # type: ignore[arg-type]
            # This makes the dataclasses inside the dataclasses; the outer ones have no key of their own.
            parsed = parser.parse_args(list(args) if words is None else _gathered(args, words))
            check_trusted(bool(parsed.get(TRUST)), f"data.{TRUST}", dict(options_of(args)))
            parsed = parser.instantiate(parsed)
            values = {
                name: hint(**{one.name: parsed[one.name] for one in fields(hint)}) if name in flat else parsed[name]
                for name, hint in hints.items()
            }
            # These commands call the arguments of the language model so.
            with under(name_or_path="model", revision="model_revision"):
                function(**values)
            return 0

        return run

    return decorate


def _gathered(args: Sequence[str], name: str) -> list[str]:
    """Return the arguments with the words before the first option as the list that an option of this name takes.

    >>> _gathered(["a=1,2", "b: c", "--out", "x"], "sae")
    ['--sae', '["a=1,2", "b: c"]', '--out', 'x']
    """
    words = list(takewhile(lambda word: not word.startswith("-"), args))
    return [*([f"--{name}", json.dumps(words)] if words else []), *args[len(words) :]]


def check_folder(out: Path, mark: str) -> None:
    """Raise where a folder to be written holds something else than an earlier result, before any work is done.

    Args:
        out: The folder, which need not be there.
        mark: The file by which an earlier result is known.

    Raises:
        ConfigError: It is a file.
        FormatError: It holds other files.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out is {str(out)!r}, which is a file; name a folder.")
    if out.is_dir() and os.listdir(out) and find_folder(out) and not (out / mark).is_file():
        raise FormatError(f"out is {str(out)!r}, which holds other files; name a new folder.")


def check_file(argument: str, path: str | None, suffix: str) -> None:
    """Raise where a file to be written is a folder or ends in something else, before any work is done."""
    if path is not None and (Path(path).suffix != suffix or Path(path).is_dir()):
        raise ConfigError(argument, path, f"name a file that ends in {suffix}")


class _Rate(ProgressColumn):
    """Steps per second, as far as they are known."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._unit}/s")


class Bars:
    """Progress bars on a terminal; elsewhere a line as a stage begins, and one at least every 30 seconds in it.

    Args:
        console: Where they are drawn; standard error if left out.
        announce: Whether a stage begins with a line if no terminal is attached.
        unit: What the steps are called, to show how many are done per second.
        line_seconds: Most seconds between two lines if no terminal is attached.
        clock: Gives seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        announce: bool = True,
        unit: str | None = None,
        line_seconds: float = LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(stderr=True)
        self._announce, self._unit, self._line_seconds, self._clock = announce, unit, line_seconds, clock

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """See `progress.Progress`."""
        if not self.console.is_terminal:
            with self._lines(name, total) as report:
                yield report
            return
        columns: list[ProgressColumn] = [TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn()]
        if self._unit is not None:
            columns.append(_Rate(self._unit))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as bar:
            task = bar.add_task(name, total=total)
            yield lambda done: bar.update(task, completed=done)
            bar.update(task, completed=total)

    @contextmanager
    def _lines(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        began = self._clock()
        # Seconds and steps of the first and the last report; what a resumed stage begins with says nothing of speed.
        reports: list[tuple[float, int]] = []

        def write() -> None:
            words = [f"{name}: {tqdm.format_interval(self._clock() - began)} so far"]
            if reports and total > 1:
                (first_seconds, first), (seconds, done) = reports[0], reports[-1]
                words.append(f"{done:,} of {total:,}")
                if done > first:
                    if self._unit is not None:
                        words.append(f"{(done - first) / (seconds - first_seconds):,.0f} {self._unit}/s")
                    left = (total - done) * (seconds - first_seconds) / (done - first)
                    words.append(f"{tqdm.format_interval(left)} left")
            print(", ".join(words), file=sys.stderr, flush=True)

        def report(done: int) -> None:
            reports[1:] = [(self._clock(), done)]
            if heartbeat.due():
                heartbeat.beat()

        if self._announce:
            print(name, file=sys.stderr, flush=True)
        with Heartbeat(write, self._line_seconds, self._clock) as heartbeat:
            yield report
