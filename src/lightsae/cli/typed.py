"""What the user typed, held against what came of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightsae.errors import ConfigError


def config_files(typed: Sequence[str]) -> list[Path]:
    """Return the files given by --config, in order."""
    return [Path(value) for key, value in _options(typed) if key in ("config", "c") and value is not None]


def check_typed_options(typed: Sequence[str], config: Any) -> None:
    """Raise where an option of the dictionary was typed that the chosen variant does not have.

    `--model.sae.k 16 --model.sae ReLU` would drop the k without a word.
    """
    sae = config.model.sae
    if sae is None:
        return
    variant = sae.class_path.rsplit(".", 1)[-1]
    known = dict(sae.get("init_args") or {})
    for key, _ in _options(typed):
        name = key.removeprefix("model.sae.").removeprefix("init_args.")
        if key.startswith("model.sae.") and name not in ("class_path", "init_args", "help", *known):
            raise ConfigError(f"--{key}: {variant} has no setting {name!r}; it has {', '.join(known)}.")


def _options(typed: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return (key, value) of every option; the value of `--key value` is the next word."""
    found: list[tuple[str, str | None]] = []
    for place, word in enumerate(typed):
        if word.startswith("-") and len(word) > 1 and not _is_number(word):
            key, given, value = word.lstrip("-").partition("=")
            following = typed[place + 1] if place + 1 < len(typed) else None
            found.append((key, value if given else following))
    return found


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
