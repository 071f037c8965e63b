"""What holds at the tokens of a source."""

from collections.abc import Callable

import pytest

from helpers.concept_texts import rows_of, said_at
from lightsae.analysis.concepts.read import mark_python, marked


@pytest.fixture
def python_at() -> Callable[[str, str], list[str]]:
    """Return the tokens of a source at which a concept holds; none if it does nowhere."""

    def at(source: str, name: str) -> list[str]:
        rows, vocabulary = rows_of(source)
        truth = marked(rows, vocabulary, mark_python, lambda done: None)
        assert truth.known.all()
        return said_at(truth, rows, vocabulary, name) if name in truth.place else []

    return at
