"""What a message says to somebody who typed a configuration."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lightsae.errors import LightsaeError


@contextmanager
def refused(kind: type[LightsaeError], typed: str) -> Iterator[pytest.ExceptionInfo[LightsaeError]]:
    """Expect an error of this kind whose message, as the command line prints it, matches `typed`, on one line."""
    with pytest.raises(kind) as error:
        yield error
    message = error.value.as_typed()
    assert re.search(typed, message), message
    assert "\n" not in message
