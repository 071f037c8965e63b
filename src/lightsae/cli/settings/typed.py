"""What the user typed: checked before anything slow is imported, and held against what came of it."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightsae.cli.settings.grid import expand_grid
from lightsae.errors import ConfigError, did_you_mean
from lightsae.parsing import read_yaml


def config_files(typed: Sequence[str]) -> list[Path]:
    """Return the files given by --config, in order."""
    return [Path(value) for key, value in options_of(typed) if key in ("config", "c") and value is not None]


def files_first(typed: Sequence[str]) -> list[str]:
    """Return what was typed with the files of --config in front, in their order, so that every option wins over them.

    >>> files_first(["--ckpt_path", "last", "--config", "run.yaml", "--config=more.yaml"])
    ['--config', 'run.yaml', '--config=more.yaml', '--ckpt_path', 'last']
    """
    files: list[str] = []
    options: list[str] = []
    words = iter(typed)
    for word in words:
        if word in ("--config", "-c"):
            files += [word, *islice(words, 1)]
        else:
            (files if word.startswith(("--config=", "-c=")) else options).append(word)
    return [*files, *options]


def check_config_files(typed: Sequence[str]) -> None:
    """Check that every file given by --config exists and holds sections of settings.

    Raises:
        ConfigError: It does not.
    """
    for file in config_files(typed):
        if not file.is_file():
            near = [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []
            what = "is a folder" if file.is_dir() else "does not exist"
            raise ConfigError(f"--config is {str(file)!r}, which {what}.{did_you_mean(file.name, near)}")
        try:
            settings = read_yaml(file)
        except (UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"--config {file} cannot be read ({error}).") from None
        except ValueError as error:
            raise ConfigError(f"--config {file}: {error}.") from None
        if not isinstance(settings, dict):
            found = "is empty" if settings is None else f"holds a {type(settings).__name__}"
            raise ConfigError(f"--config {file} {found}; write sections such as `data: {{model: gpt2}}`.")
        for section in ("data", "model", "trainer"):
            value = settings.get(section)
            if value is not None and not isinstance(value, dict | str):
                raise ConfigError(f"--config {file}: {section} is {value!r}; write settings under it, `name: value`.")
        expand_grid(settings)


def check_typed_options(typed: Sequence[str], config: Any) -> None:
    """Raise where an option was typed that had no effect.

    `--model.sae.k 16 --model.sae ReLU` would drop the k without a word.
    """
    sae = config.model.sae
    if sae is None:
        return
    variant = sae.class_path.rsplit(".", 1)[-1]
    known = _settings(sae)
    last = dict(options_of(typed))
    for key, value in last.items():
        name = key.removeprefix("model.sae.").replace("init_args.", "")
        if key.startswith("model.sae.") and name not in ("class_path", "init_args", "help", *known):
            raise ConfigError(
                f"--{key} is {value}, but {variant} has no setting {name!r}; it has {', '.join(known)}."
                + did_you_mean(name, known)
            )
    if last.get("data.training_tokens") not in (None, "null") and config.trainer.max_steps > 0:
        raise ConfigError(
            f"--data.training_tokens has no effect, since trainer.max_steps is {config.trainer.max_steps}; "
            "give one of them (--trainer.max_steps -1 takes the other back)."
        )


def _settings(chosen: Any) -> list[str]:
    """Return the settings of a chosen class, and of classes chosen within it, as they may be written."""
    names = [name.replace("init_args.", "").removesuffix(".class_path") for name in dict(chosen.get("init_args") or {})]
    sections = [name.rpartition(".")[0] for name in names if "." in name]
    return list(dict.fromkeys([*names, *sections]))


def options_of(typed: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return (key, value) of every option; the value of `--key value` is the next word."""
    found: list[tuple[str, str | None]] = []
    for place, word in enumerate(typed):
        # -3 and -inf are values.
        if re.match(r"--|-[ch]\b", word):
            key, equals, value = word.lstrip("-").partition("=")
            following = typed[place + 1] if place + 1 < len(typed) else None
            found.append((key, value if equals else following))
    return found
