"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed


def version() -> str:
    """Return the installed version, or `unknown` in a tree that was never installed."""
    try:
        return installed("lightsae")
    except PackageNotFoundError:
        return "unknown"
