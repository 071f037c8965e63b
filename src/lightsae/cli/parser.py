"""The parser of fit and validate: help in the order in which people need it, errors in one line."""

import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightsae.errors import ConfigError, LightsaeError, did_you_mean
from lightsae.sae import VARIANTS


class Parser(LightningArgumentParser):
    """LightningArgumentParser whose mistakes are ConfigErrors of one line, not usage texts of a thousand."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause: BaseException | None = ex
        while cause is not None:
            if isinstance(cause, LightsaeError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        raise ConfigError(self._in_short(message)) from None

    def _in_short(self, message: str) -> str:
        """Return the one line of jsonargparse's message that says what is wrong, with a near name where one exists."""
        message = re.sub(r"\x1b\[[0-9;]*m", "", message).strip()
        keys = [key for key in _flat_keys(self) if not key.startswith("trainer.") or "trainer" in message]
        if found := re.search(r"(?:Unrecognized arguments:|unrecognized arguments:)\s*(--)?([^\s=]+)", message):
            return f"--{found[2]} is not an option.{did_you_mean(found[2], keys)}"
        if found := re.search(r"Key '([^']+)' is not expected|No action for key \"([^\"]+)\"", message):
            key = found[1] or found[2]
            return f"{key} is not a setting.{did_you_mean(key, keys)}"
        key = found[1] if (found := re.search(r"(?:Parser key|key) [\"']([\w.]+)[\"']", message)) else ""
        if key in ("model.sae", "sae") and (found := re.search(r"[Gg]iven value:? '?([\w.]+)'?|import path '?([\w.]+)", message)):
            name = found[1] or found[2]
            return f"model.sae is {name!r}; the variants are {', '.join(VARIANTS)}.{did_you_mean(name, VARIANTS)}"
        lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
        return " ".join(lines)[:400]


def _flat_keys(parser: Any) -> list[str]:
    return [action.dest for action in parser._actions if action.dest not in ("help", "config")]
