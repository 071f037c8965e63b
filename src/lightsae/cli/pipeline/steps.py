"""A step of a pipeline: a command with the settings that the pipeline's file and the typed options give it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightsae.cli.settings.trusted import ALLOW, TRUST
from lightsae.cli.settings.typed import check_config_files
from lightsae.errors import ConfigError, LightsaeError
from lightsae.parsing import parse_yaml, read_yaml

# Each step with the one whose result it reads; its outputs, the first of which tells one run from another; the settings
# that the pipeline chooses; what it makes.
NEEDS = {"fit": None, "validate": "fit", "interpret": "fit", "panel": "interpret"}
OUTPUTS = {
    "fit": ("sae/sae.json", "config.yaml"),
    "validate": ("validation.json",),
    "interpret": ("dictionary.json", "features.parquet"),
    "panel": ("panel.json", "panel.md"),
}
OWN = {
    "fit": ("trainer.default_root_dir", "trainer.logger", "ckpt_path"),
    "validate": ("config", "trainer.default_root_dir", "trainer.logger", "ckpt_path"),
    "interpret": ("sae", "out"),
    "panel": ("sae", "dictionary", "out"),
}
MAKES = {"fit": "run", "validate": "validation", "interpret": "dictionary", "panel": "panel"}


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


def step_of(name: str, section: Any, typed: dict[str, str]) -> Step | None:
    """Return a step with the settings of the pipeline's file and those that were typed; None: it is left out."""
    if section in (None, False) and not typed:
        return None
    settings: dict[str, Any] = dict(section) if isinstance(section, dict) else {}
    files = _value(f"{name}.config", typed["config"]) if "config" in typed else settings.get("config")
    files = [] if files is None else files if isinstance(files, list) else [files]
    options = {key: value for key, value in {**_flat(settings), **typed}.items() if key.partition(".")[0] != "config"}
    # The panel's own file first: options win over it.
    options = dict(sorted(options.items(), key=lambda item: (name, item[0]) != ("panel", "panel")))
    for key in options:
        # What a step is given as an option counts as typed there.
        if key.rpartition(".")[2] in (ALLOW, TRUST) and key not in typed:
            raise ConfigError(f"{name}.{key} is set in a file, but it has to be typed: --{name}.{key} {options[key]}")
    for key in [*options, *(["config"] if files else [])]:
        if any(key == own or key.startswith(f"{own}.") for own in OWN[name]):
            raise ConfigError(f"{name}.{key} is set, but the pipeline chooses it; leave it out.")
    step = Step(name, tuple(str(file) for file in files), options)
    try:
        check_config_files(step.words())
    except LightsaeError as error:
        raise type(error)(f"{name}: {error.args[0]}") from None
    if name == "panel" and "panel" in options and not Path(options["panel"]).is_file():
        raise ConfigError(f"panel.panel is {options['panel']!r}, which does not exist.")
    return step


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


def _value(key: str, typed: str) -> Any:
    try:
        return parse_yaml(typed)
    except ValueError as error:
        raise ConfigError(f"--{key} is {typed[:60]!r}: {error}.") from None


def _read_yaml(file: str) -> Any:
    try:
        return read_yaml(Path(file))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{file!r} cannot be read as YAML ({error}).") from None
