"""The command line: `lightsae COMMAND`."""

from lightsae.cli.main import main

__all__ = ["main"]
