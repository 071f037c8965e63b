"""The JSON file in which a layout says what its tensors are: read in bounds, asked for by name and type."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightsae.errors import FormatError
from lightsae.formats.checks import fits
from lightsae.formats.files import shown
from lightsae.parsing import read_json


class Description:
    """The values of such a file.

    Args:
        values: As JSON has them.
        where: The file as the user would write it, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    @classmethod
    def read(cls, file: Path) -> "Description":
        """Read a file.

        Raises:
            FormatError: It is missing, no JSON, or no object.
        """
        where = shown(file)
        try:
            # Settings of a training may be NaN or infinite; they have no part in the function.
            values = read_json(file, finite=False)
        except OSError as error:
            raise FormatError(f"{where!r} cannot be read ({error.strerror}); copy the whole folder again.") from error
        except ValueError as error:
            raise FormatError(f"{where!r} is not valid JSON ({error}); copy it again.") from error
        if not isinstance(values, dict):
            raise FormatError(f"{where!r} holds a {type(values).__name__}, where an object should be; copy it again.")
        return cls(values, where)

    @classmethod
    def read_if_there(cls, file: Path) -> "Description":
        """Read a file; what is not there says nothing."""
        return cls.read(file) if file.is_file() else cls({}, shown(file))

    def get(self, name: str, kind: Any, otherwise: Any = None) -> Any:
        """Return a value, or `otherwise` where it is missing or null.

        Raises:
            FormatError: It is of another type.
        """
        value = self.values.get(name)
        if value is None:
            return otherwise
        if not fits(value, kind):
            said = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
            raise FormatError(f"{self.where!r}: {name} is {value!r:.60}, where {said} should be; copy it again.")
        return value

    def need(self, name: str, kind: Any) -> Any:
        """Return a value that has to be there; see `get`."""
        value = self.get(name, kind)
        if value is None:
            raise FormatError(f"{self.where!r} does not say {name}; copy it again.")
        return value

    def part(self, name: str) -> "Description":
        """Return an object within; what is not there says nothing."""
        return Description(self.get(name, dict, {}), self.where)
