"""Python names that an earlier version had: they work, and a DeprecationWarning says what to write instead."""

import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from lightsae.errors import ConfigError

MOVED = {
    "lightsae.analysis.artefact": "lightsae.analysis.dictionary",
    "lightsae.analysis.monitor": "lightsae.production.monitor",
    "lightsae.analysis.registry": "lightsae.production.registry",
}


class MovedModules:
    """Makes the old name of a module another name of the new one: the same object, so that classes are the same too.

    It has to be asked first: Python would otherwise read a submodule of an old name a second time, from the new folder.
    """

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        loader: Any = self
        return ModuleSpec(name, loader) if _new_name(name) is not None else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to the import system to make a module; `exec_module` puts another one in its place."""

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, _new_name(module.__name__)
        assert new is not None
        # The frames of the import system do not count: this is the line that imports.
        warnings.warn(f"{old} is now {new}; import that one.", DeprecationWarning, stacklevel=2)
        sys.modules[old] = import_module(new)


def _new_name(name: str) -> str | None:
    package = ".".join(name.split(".")[:3])
    return MOVED[package] + name.removeprefix(package) if package in MOVED else None


def with_channel(steer: Callable[..., AbstractContextManager[Any]]) -> Callable[..., AbstractContextManager[Any]]:
    """Return `steer` with the arguments `channel` and `registry`, in place of which one gives what a channel has."""

    @contextmanager
    def promoted(channel: str, registry: str | Path, args: Sequence[Any], settings: dict[str, Any]) -> Iterator[Any]:
        from lightsae.production.registry import load_channel

        if len(args) > 2 or any(settings.get(name) is not None for name in ("sae", "dictionary")):
            raise ConfigError(f"channel is {channel!r}, and sae or dictionary is given too; keep one of the two.")
        model = args[0] if args else settings["model"]
        checked = None if settings.get("any_model") else model
        version = load_channel(registry, channel, checked, site=settings.get("site"))
        settings = {name: value for name, value in settings.items() if name not in ("sae", "dictionary")}
        with steer(*args, **settings, sae=version) as steering:
            yield steering

    @functools.wraps(steer)
    def wrapped(
        *args: Any, channel: str | None = None, registry: str | Path = "registry", **settings: Any
    ) -> AbstractContextManager[Any]:
        if channel is None:
            return steer(*args, **settings)
        warnings.warn(
            "steer(channel=...) is deprecated; write steer(model, interventions, load_channel(registry, channel)).",
            DeprecationWarning,
            stacklevel=2,
        )
        return promoted(channel, registry, args, settings)

    return wrapped
