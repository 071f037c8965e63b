"""What `lightsae pipeline` is to do: its steps, what it remembers of them, and which are done.

OUT/pipeline.json holds, for every step, all that it depends on as flat `setting: value` pairs: its options, what the
files say that they name, the hashes of what it reads, the version of lightsae. A step is done where its outputs exist
and none of the pairs has changed; the pairs that did are the reason that is given for running it again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightsae.errors import ConfigError, FormatError
from lightsae.formats.files import find_folder, shown, write_atomically
from lightsae.formats.native import describe_sae
from lightsae.version import version

# Each step with the one whose result it reads.
NEEDS = {"fit": None, "validate": "fit", "interpret": "fit", "panel": "interpret"}
GOES_ON = "goes on where it was stopped"
_OUTPUTS = {
    "fit": ("config.yaml", "sae/sae.json"),
    "validate": ("validation.json",),
    "interpret": ("dictionary.json", "features.parquet"),
    "panel": ("panel.json", "panel.md"),
}
_STATE, _FORMAT = "pipeline.json", 1
_LONGEST_VALUE, _MOST_CHANGES = 40, 4


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
        found = {"config": ", ".join(self.files)} if self.files else {}
        for file in self.files:
            found |= flatten(_read_yaml(file))
        found |= self.options
        for value in self.options.values():
            if value.endswith((".yaml", ".yml")) and Path(value).is_file():
                told = flatten({"contents": _read_yaml(value)})
                found |= {f"{key.removeprefix('contents.')} in {value}": setting for key, setting in told.items()}
        return found


@dataclass(frozen=True)
class Record:
    """A step that was begun: where its outputs go, within OUT, and all that it depended on."""

    folder: str
    inputs: dict[str, str]


@dataclass
class State:
    """What OUT/pipeline.json holds: of every step the last one that was completed, and the one begun since."""

    path: Path
    done: dict[str, Record] = field(default_factory=dict)
    begun: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def read(cls, out: Path) -> "State":
        """Read the file of a folder; nothing is done where there is none.

        Raises:
            FormatError: It is damaged, or was written by a newer version.
        """
        path = out / _STATE
        if not path.exists():
            return cls(path)
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            newer = told["format"] > _FORMAT
            parts = [{name: Record(**record) for name, record in told[part].items()} for part in ("done", "begun")]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{shown(path)!r} cannot be read; delete it, and every step runs again.") from error
        if newer:
            raise FormatError(f"{shown(path)!r} was written by a newer lightsae: pip install --upgrade lightsae")
        return cls(path, *parts)

    def begin(self, name: str, record: Record) -> None:
        """Remember that a step was begun; what is known of its last complete run stays."""
        self.begun[name] = record
        self._write()

    def finish(self, name: str) -> None:
        """Remember that the step which was begun is complete."""
        self.done[name] = self.begun.pop(name)
        self._write()

    def _write(self) -> None:
        told: dict[str, Any] = {"format": _FORMAT}
        for part, records in (("done", self.done), ("begun", self.begun)):
            told[part] = {name: vars(record) for name, record in records.items()}
        with write_atomically(self.path) as partial:
            partial.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Pipeline:
    """The steps to do in a folder.

    Attributes:
        out: The folder.
        steps: In their order.
        given_run: The run to start from, where fit is left out.
        state: What was done.
    """

    out: Path
    steps: dict[str, Step]
    given_run: Path | None
    state: State

    def plan(self, force: str | None = None) -> dict[str, str | None]:
        """Return for every step why it is to run, or None where it is done.

        Raises:
            ConfigError: A step needs the result of one that is left out and was never done.
            FormatError: A result that a step needs is damaged.
        """
        reasons: dict[str, str | None] = {}
        for name in self.steps:
            before = NEEDS[name]
            if before == "interpret" and before not in self.steps and reasons.get("fit") is not None:
                raise ConfigError(
                    "interpret is left out, but panel needs a dictionary of the SAE that fit is to train."
                )
            if before is not None and reasons.get(before) is not None:
                reasons[name] = f"reads what {before} is to make"
            else:
                reason = self._why(name)
                reasons[name] = "asked for by --force" if name == force else reason
        return reasons

    def _why(self, name: str) -> str | None:
        done, begun, inputs = self.state.done.get(name), self.state.begun.get(name), self.inputs(name)
        if begun is not None and begun.inputs == inputs:
            can_go_on = name == "fit" and (self.out / begun.folder / "checkpoints" / "last.ckpt").is_file()
            return GOES_ON if can_go_on else "was stopped before its end"
        if done is None:
            return "not done yet" if begun is None else f"was stopped, and {_changes(begun.inputs, inputs)}"
        if done.inputs != inputs:
            return _changes(done.inputs, inputs)
        missing = self.missing(name, done.folder)
        return None if missing is None else f"{shown(missing)} is gone"

    def inputs(self, name: str) -> dict[str, str]:
        """Return all that a step depends on, as things are now."""
        found = {**self.steps[name].settings(), "lightsae": version()}
        if name != "fit":
            found["the SAE"] = str(describe_sae(self.run() / "sae")["sha256"])
        if name == "panel":
            found["the dictionary"] = _dictionary_id(self.out / self.folder("interpret"))
        return found

    def run(self) -> Path:
        """Return the folder of the run whose dictionary is used."""
        if self.given_run is not None:
            return self.given_run
        if "fit" not in self.state.done:
            raise ConfigError("fit is left out; name a run whose dictionary to use: --run lightning_logs/version_N")
        return self.out / self.state.done["fit"].folder

    def missing(self, name: str, folder: str) -> Path | None:
        """Return the first of a step's outputs that does not exist."""
        paths = [self.out / folder / output for output in _OUTPUTS[name]]
        return next(
            (path for path in paths if not ((find_folder(path.parent) or path.parent) / path.name).is_file()), None
        )

    def command(self, name: str, reason: str, run: Path) -> list[str]:
        """Return a step as it is typed after `lightsae`.

        Args:
            name: The step.
            reason: Why it runs.
            run: The folder of the run that it reads.
        """
        words = self.steps[name].words()
        if reason == GOES_ON:
            return [name, "--config", f"{self.out / self.state.begun[name].folder}/config.yaml", "--ckpt_path", "last"]
        if name == "fit":
            return [name, *words, "--trainer.default_root_dir", str(self.out)]
        if name == "validate":
            of_run = ["--config", f"{run}/config.yaml", "--ckpt_path", "last"]
            return [name, *of_run, *words, "--trainer.default_root_dir", str(self.out)]
        dictionary = ["--dictionary", str(self.out / self.folder("interpret"))] if name == "panel" else []
        return [name, "--sae", f"{run}/sae", *dictionary, "--out", str(self.out / self.folder(name)), *words]

    def folder(self, name: str) -> str:
        """Return where the outputs of a step go, within OUT; of fit and validate, where Lightning logs next."""
        if name in ("interpret", "panel"):
            return "dictionary" if name == "interpret" else "panel"
        numbers = [path.name.removeprefix("version_") for path in (self.out / "lightning_logs").glob("version_*")]
        return f"lightning_logs/version_{max([int(number) for number in numbers if number.isdigit()], default=-1) + 1}"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `section.setting`, each with its value as it is typed."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            found[f"{prefix}{key}"] = value
        else:
            # Also how YAML writes null, true and numbers.
            found[f"{prefix}{key}"] = json.dumps(value, default=str)
    return found


def _read_yaml(file: str) -> Any:
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        raise ConfigError(f"{file!r} cannot be read as YAML.") from None


def _dictionary_id(folder: Path) -> str:
    place = find_folder(folder)
    try:
        if place is None:
            raise ConfigError(f"interpret is left out, but panel needs {shown(folder)!r}, which does not exist.")
        return str(json.loads((place / "dictionary.json").read_text(encoding="utf-8"))["id"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise FormatError(
            f"{shown(folder)!r} is no whole feature dictionary; run it again: --force interpret"
        ) from error


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say what changed, the first few of many."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    said = [f"{key} {_short(before.get(key))} -> {_short(now.get(key))}" for key in keys[:_MOST_CHANGES]]
    more = [f"{len(keys) - _MOST_CHANGES} more"] if len(keys) > _MOST_CHANGES else []
    return f"changed: {'; '.join([*said, *more])}"


def _short(value: str | None) -> str:
    if value is None:
        return "(not set)"
    return value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 3]}..."
