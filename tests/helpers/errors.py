"""Expect an error as somebody reads it who wrote a configuration file: with the sections of its keys."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lightsae.errors import LightsaeError


@contextmanager
def refused(kind: type[LightsaeError], message: str) -> Iterator[pytest.ExceptionInfo[LightsaeError]]:
    with pytest.raises(kind) as error:
        yield error
    assert re.search(message, error.value.as_typed()), error.value.as_typed()
