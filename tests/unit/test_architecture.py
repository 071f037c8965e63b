"""The house: layers (pyproject's import-linter contracts), no circle, messages that speak of arguments."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

import lightsae

ROOT = Path(lightsae.__file__).parent
MODULES = [path for path in sorted(ROOT.rglob("*.py")) if "cli" not in path.relative_to(ROOT).parts]
# Keys of a configuration file, which only the command line has.
KEY = re.compile(
    r"(?<![\w.])(data\.[a-z]+_?[a-z_]*|trainer\.[a-z_]+|model\.(saes?|lr|start|dead_after|coefficients|grid))\b"
)


def test_imports_go_in_no_circle() -> None:
    # Imports for type checkers count as well.
    graph = grimp.build_graph("lightsae", cache_dir=None)
    try:
        TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def texts(tree: ast.AST) -> list[str]:
    """Return the literals of a module but its docstrings and the sections that it names."""
    left_out = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    left_out |= {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "section"
        for argument in node.args
    }
    literals = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in literals if id(node) not in left_out]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_name_arguments_and_not_keys(path: Path) -> None:
    assert [text for text in texts(ast.parse(path.read_text())) if KEY.search(text)] == []
