"""The parser of fit and validate: help in the order in which people need it, errors in one line."""

import argparse
from typing import Any, NoReturn

import yaml
from jsonargparse import set_loader
from lightning.pytorch.cli import LightningArgumentParser

from lightsae.cli.settings.grid import expand_grid
from lightsae.cli.settings.help import HelpFormatter, arranged, settings_of
from lightsae.cli.settings.trusted import load_yaml
from lightsae.cli.settings.wording import in_short, names_of_classes
from lightsae.errors import ConfigError
from lightsae.sae import MECHANISMS, VARIANTS
from lightsae.sae.variants import trained

_NO_SETTINGS = ("help", "config", "print_config")
# As the parser of the command calls them, and as those of classes do.
_CHOICES = {key: list(trained(VARIANTS)) for key in ("model.sae", "sae")}
_CHOICES |= {key: list(trained(MECHANISMS)) for key in ("model.sae.mechanism", "mechanism")}
set_loader("lightsae", lambda text: expand_grid(load_yaml(text)), exceptions=(yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """LightningArgumentParser whose mistakes are ConfigErrors of one line, not usage texts of a thousand.

    jsonargparse makes further parsers of this class for the settings of each class that a user may choose.

    Args:
        command: The command whose options it parses; empty for the parser above them, and for those of classes.
    """

    def __init__(self, *args: Any, command: str = "", **kwargs: Any) -> None:
        # An option is what is written in full: --data.data would be data.dataset, until another setting begins so.
        super().__init__(
            *args, **{"allow_abbrev": False, "formatter_class": HelpFormatter, "parser_mode": "lightsae", **kwargs}
        )
        self._command, self._class_name = command, ""

    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if nested_key is None:
            self._class_name = getattr(theclass, "__name__", "")
        return super().add_class_arguments(theclass, nested_key, *args, **kwargs)

    def format_help(self, *args: Any) -> str:
        if not self._command:
            return super().format_help(*args)
        groups = self._action_groups
        self._action_groups = arranged(self._command, self._actions, _actions_of)  # type: ignore[assignment]
        try:
            return super().format_help(*args)
        finally:
            self._action_groups = groups

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        keys = [action.dest for action in self._actions if action.dest.rpartition(".")[2] not in _NO_SETTINGS]
        if not self.exit_on_error:
            # The parser of a class: another one reports what it finds, or tries the next type of a union.
            super().error(in_short(message, keys, _CHOICES, owner=self._class_name), ex)
        command = getattr(ex, "subcommand_parser", None)
        if command is not None:
            command.error(message)
        of_variants = {f"model.sae.{name}" for kind in VARIANTS.values() for name in settings_of(kind)}
        hints = {action.dest: getattr(action, "_typehint", None) for action in self._actions}
        known = {key: names_of_classes(hint) for key, hint in hints.items() if key.startswith("trainer.")}
        classes = {key: names for key, names in known.items() if names} | _CHOICES
        raise ConfigError(in_short(message, [*keys, *sorted(of_variants)], classes)) from None


def _actions_of(variant: type) -> list[argparse.Action]:
    """Return the settings of a variant as they are written behind --model.sae."""
    parser = LightningArgumentParser(exit_on_error=False)
    before = len(parser._actions)
    parser.add_class_arguments(variant, "model.sae", skip={"widths"})
    return [action for action in parser._actions[before:] if action.dest != "model.sae"]
