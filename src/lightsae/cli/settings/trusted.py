"""What a configuration may name and hold: known classes, others if somebody types it, and YAML of bounded size.

A file that somebody sent is data: it chooses among what is there. What would run code from elsewhere has to be typed.
"""

import shlex
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import jsonargparse._loaders_dumpers as _jsonargparse
from jsonargparse import get_loader, set_parsing_settings

from lightsae.errors import ConfigError
from lightsae.parsing import BoundedLoader

ALLOW, TRUST = "allow_classes", "trust_remote_code"
ALLOW_HELP = (
    "Package or module whose classes the settings may name, beside lightsae's and Lightning's; several with commas. "
    "Taken from the command line alone."
)
# Their classes are made for configurations. LambdaCallback calls whatever it is given.
_KNOWN = ("lightsae", *(f"lightning.{part}" for part in ("pytorch", "fabric")))
_NEVER = ("*", "lightning.pytorch.callbacks.lambda_function", "lightning.pytorch.callbacks.LambdaCallback")

# Beside the loader that a parser is given, jsonargparse reads single values by one of its own, which nothing public
# replaces. tests/unit/cli/settings/test_loading.py tells whether a later version still takes this one.
_jsonargparse.yaml_default_loader = BoundedLoader  # type: ignore[assignment]
load_yaml = get_loader("yaml")


def restrict_classes(allowed: str | None) -> None:
    """Let class paths name lightsae's classes, Lightning's and those below `allowed`; others are not even imported.

    Args:
        allowed: Packages, modules or classes, with commas between them.

    Raises:
        ConfigError: One of them is no dotted name.
    """
    names = [name.strip() for name in (allowed or "").split(",") if name.strip()]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"--{ALLOW} is {name!r}; name a package, a module or a class, such as my_callbacks.")
    set_parsing_settings(import_path_denylist=list(_NEVER), import_path_allowlist=[*_KNOWN, *names])


def check_allowed(found: str | None, typed: Mapping[str, Any]) -> None:
    """Refuse a file that allows classes to itself.

    Raises:
        ConfigError: `found` was not typed.
    """
    if found is not None and ALLOW not in typed:
        raise ConfigError(f"{ALLOW} is {found!r} in a file, but it has to be typed: --{ALLOW} {found}")


def to_type_again(typed: Mapping[str, str | None]) -> str:
    """Return the options that no file can hold, as they were typed: they belong to every command that goes on.

    Example:
        >>> to_type_again({"config": "a.yaml", "allow_classes": "mine", "data.trust_remote_code": None})
        ' --allow_classes mine --data.trust_remote_code'
    """
    kept = [(name, value) for name, value in typed.items() if name.rpartition(".")[2] in (ALLOW, TRUST)]
    return "".join(
        f" --{name}" + (f" {shlex.quote(value)}" if value and not value.startswith("--") else "")
        for name, value in kept
    )


def check_variants(model: Any, base: type) -> None:
    """Refuse functions where a variant of the SAE is to be chosen: they would be called.

    Args:
        model: The section of that name, parsed.
        base: The class of all variants.

    Raises:
        ConfigError: What is chosen is no such class.
    """
    chosen = {"sae": model.sae} | {f"saes.{name}.sae": entry.sae for name, entry in (model.saes or {}).items()}
    for key, value in chosen.items():
        kind = value
        if hasattr(value, "class_path"):
            module, _, name = value.class_path.rpartition(".")
            kind = getattr(import_module(module), name)
        if kind is not None and not (isinstance(kind, type) and issubclass(kind, base)):
            raise ConfigError(f"model.{key} is {kind.__qualname__!r}, which is no variant of an SAE.")


def check_trusted(is_set: bool, key: str, typed: Iterable[str]) -> None:
    """Refuse to trust a model's own code because a file says so.

    Args:
        is_set: Whether the setting is true, by whatever means.
        key: The setting as fit's users write it.
        typed: Names of the options that were typed.

    Raises:
        ConfigError: It was not typed.
    """
    if is_set and not any(name.rpartition(".")[2] == TRUST for name in typed):
        raise ConfigError(
            f"{key} is true in a file, but running code from a model's repository has to be typed: --{key} true"
        )
