"""The parser of commands that answer --help before PyTorch is imported."""

import argparse
from typing import NoReturn

from lightsae.errors import ConfigError


class PlainParser(argparse.ArgumentParser):
    """argparse's, with mistakes as one short message.

    Args:
        name: The command.
        usage: What stands after it.
        description: What it does.
        examples: Lines to copy.
    """

    def __init__(self, name: str, usage: str, description: str, *examples: str) -> None:
        super().__init__(
            prog=f"lightsae {name}",
            usage=f"lightsae {name} {usage}",
            description=description,
            epilog="Example: " + "; ".join(examples),
            allow_abbrev=False,
        )
        self._line = f"lightsae {name} {usage}"

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. Write: {self._line}")

    def add_names(self) -> None:
        """Add the options that name what a file does not know; those of `fit` under `data`."""
        wanted = (
            ("model", "MODEL", "language model, for a file that does not say it: a Hub name, a folder, or `builtin`"),
            ("site", "SITE", "what the SAE reads, for a file that does not say it: resid_post.6, ..."),
            ("target_site", "SITE", "what a transcoder predicts, for a file that does not say it"),
        )
        for name, value, help_ in wanted:
            self.add_argument(f"--data.{name}", f"--{name}", dest=name, metavar=value, help=help_)
