"""Examples in docstrings, `>>>`, are shown as code, wherever in a docstring they stand."""

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLES = re.compile(r"^(?:Example:\n)?((?P<indent> *)>>> .*(?:\n(?P=indent).+)*)", re.M)


class Doctests(Extension):
    """Makes a section `Examples:` of each run of lines that begins with `>>>`."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLES.sub(_as_section, obj.docstring.value)


def _as_section(match: re.Match[str]) -> str:
    lines = [line.removeprefix(match["indent"]) for line in match[1].splitlines()]
    return "\n".join(["Examples:", *(f"    {line}" for line in lines)])
