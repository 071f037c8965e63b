"""The examples in docstrings, `>>>`, of every module."""

import doctest
import importlib.util
import pkgutil
from importlib import import_module

import pytest

import lightsae

MODULES = [
    module.name
    for module in pkgutil.walk_packages(lightsae.__path__, "lightsae.")
    if not module.name.endswith("__main__")
    # Kernels are imported where they are used, with Triton.
    and (importlib.util.find_spec("triton") or not module.name.startswith("lightsae.sae.kernels."))
]


@pytest.mark.parametrize("name", ["lightsae", *MODULES, "helpers.pages"])
def test_examples_of_a_module_hold(name: str) -> None:
    result = doctest.testmod(import_module(name), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    examples = sum(len(test.examples) for name in MODULES for test in finder.find(import_module(name)))
    assert examples > 20
