"""What the scanner says of hand-made sources, sign by sign, and of whole modules against `tokenize` and `ast`."""

import ast
import io
import random
import tokenize
from collections.abc import Iterator

import numpy as np
import pytest

from lightsae.activations.corpus.builtin import standard_library_documents
from lightsae.analysis.labels.python_source import (
    ANNOTATION,
    ARGUMENT,
    ASPECTS,
    CLASS,
    COMMENT,
    DECORATOR,
    DEF,
    DEFAULT,
    DOCSTRING,
    IMPORT,
    KEYWORD,
    PARAMETER,
    STRING,
    SUBSCRIPT,
    TARGET,
    read_source,
)


def of(source: str, aspect: str, value: int) -> list[str]:
    """Return the stretches of a source that have a value of an aspect; what is empty is left out."""
    read = read_source(source)
    assert read is not None
    stretches, inside = [], False
    for sign, number in zip(source, read[aspect][:-1].tolist(), strict=True):
        if number == value and not inside:
            stretches.append("")
        inside = number == value
        if inside:
            stretches[-1] += sign
    return [stretch for stretch in (s.strip() for s in stretches) if stretch]


SOURCE = '''"""Of the module."""
import os
from a import (b,
    c)

@wraps(f, x=1)
async def run(a, b: int = 3, *, key=lambda x: x + 1) -> str:
    """Of the
    function."""
    x, self.y = call(a, inner(1), name="s"), 2  # note
    table[k] = x == y
    n: int = 3
    "no docstring"
    return {"a": b}

class Small(Base, metaclass=Meta):
    'Of the class.'
'''


@pytest.mark.parametrize(
    ("aspect", "value", "expected"),
    [
        ("region", DOCSTRING, ['"""Of the module."""', '"""Of the\n    function."""', "'Of the class.'"]),
        ("region", STRING, ['"s"', '"no docstring"', '"a"']),
        ("region", COMMENT, ["# note"]),
        ("role", IMPORT, ["import os\nfrom a import (b,\n    c)"]),
        ("role", DECORATOR, ["@wraps(f, x=1)"]),
        ("role", DEF, ["run"]),
        ("role", CLASS, ["Small"]),
        ("role", TARGET, ["x", "self", "y", "table", "n"]),
        ("role", PARAMETER, ["a", "b", "*", "key"]),
        ("role", DEFAULT, ["3", "lambda x: x + 1"]),
        ("role", ANNOTATION, ["int", "str", "int"]),
        ("role", ARGUMENT, ["a, inner(1),", '="s"', "Base,", "=Meta"]),
        ("role", KEYWORD, ["name", "metaclass"]),
        ("role", SUBSCRIPT, ["k"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_concepts_of_a_source(aspect: str, value: int, expected: list[str]) -> None:
    assert of(SOURCE, aspect, value) == expected


def test_indentation_counts_tabs_and_blank_lines_and_comments_do_not_end_a_block() -> None:
    source = "if a:\n\tif b:\n\t\tc\n\n# far out\n\t\td\n\te\nf\n"
    read = read_source(source)
    assert read is not None
    at = {sign: source.index(f"{sign}\n") for sign in "cdef"}
    depth = {sign: ASPECTS["depth"][read["depth"][place]] for sign, place in at.items()}
    assert depth == {
        "c": "at depth 2 of indentation",
        "d": "at depth 2 of indentation",
        "e": "at depth 1 of indentation",
        "f": "without indentation",
    }
    line = {sign: ASPECTS["line"][read["line"][place]] for sign, place in at.items()}
    assert line == {
        "c": "where the indentation grows",
        "d": "at a line's start",
        "e": "at a dedent",
        "f": "at a dedent",
    }


def test_fields_of_an_f_string_may_have_its_own_quotes() -> None:
    # Python 3.12 takes it; whatever Python runs this, the string ends where it ends there.
    source = 'x = f"{d["k"]} of {n!r:>{w}} {{" + y\nz = f"{" + y\n'
    assert of(source, "region", STRING) == ['f"{d["k"]} of {n!r:>{w}} {{"', 'f"{"']
    assert of("x = rb'\\'' + F'''a\n'{b}'''\n", "region", STRING) == ["rb'\\''", "F'''a\n'{b}'''"]


@pytest.mark.parametrize(
    "source",
    [
        "def f(a,\n    b=(1,\n",
        "x = 'never closed\ny = 2\n",
        "x = call(a, [1\ndef g():\n    return 1\n",
        "class (:\n)))\n=\n",
        "",
    ],
)
def test_what_does_not_parse_is_read_as_far_as_it_goes(source: str) -> None:
    with pytest.raises(SyntaxError):
        ast.parse(source or "(")
    assert read_source(source) is not None


def test_a_bracket_that_is_never_closed_ends_with_the_next_statement() -> None:
    assert of("x = call(a, [1\ndef g(b):\n    return 1\n", "role", DEF) == ["g"]


def test_a_piece_may_begin_inside_a_docstring() -> None:
    words = "the rest of what it says, in plain words, with an apostrophe that isn't a quote.\n    "
    cut = words + '"""\n    return call(a)\n'
    assert of(cut, "region", DOCSTRING) == [cut[: cut.index('"""') + 3]]
    assert of(cut, "role", ARGUMENT) == ["a"]


@pytest.mark.parametrize(
    "prose", ["It was a dark night, and the wind blew. " * 5, "Once upon a time\nthere was a cat.\n" * 9]
)
def test_prose_is_no_source(prose: str) -> None:
    assert read_source(prose) is None


def modules() -> Iterator[tuple[str, str]]:
    """Modules of the standard library, every fifth; what only newer Pythons tokenise otherwise is left out."""
    for document in list(standard_library_documents("validation"))[::5]:
        if not document.name.startswith("pydoc_data"):
            yield document.name, document.text


def offsets(text: str) -> tuple[list[int], list[bytes]]:
    lines = text.split("\n")
    return np.cumsum([0, *(len(line) + 1 for line in lines)]).tolist(), [line.encode() for line in lines]


def docstrings(tree: ast.AST) -> Iterator[tuple[int, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(value := first.value, ast.Constant):
                if isinstance(value.value, str):
                    yield value.lineno, value.col_offset


def test_whole_modules_are_read_as_tokenize_and_ast_read_them() -> None:
    wrong, count = [], 0
    for name, text in modules():
        read = read_source(text)
        assert read is not None, name
        begins, lines = offsets(text)

        def place(row: int, column: int, begins: list[int] = begins, lines: list[bytes] = lines) -> int:
            return begins[row - 1] + len(lines[row - 1][:column].decode())

        tree = ast.parse(text)
        documented = {place(*at) for at in docstrings(tree)}
        expected: list[tuple[str, int, int, int]] = []
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            start, end = (begins[row - 1] + column for row, column in (token.start, token.end))
            if token.type == tokenize.COMMENT:
                expected.append(("region", start, end, COMMENT))
            if token.type == tokenize.STRING and not text[start:end].lower().startswith(("f", "rf", "fr")):
                expected.append(("region", start, end, DOCSTRING if start in documented else STRING))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                value = CLASS if isinstance(node, ast.ClassDef) else DEF
                start = text.index(node.name, place(node.lineno, node.col_offset) + 3)
                expected.append(("role", start, start + len(node.name), value))
                expected += [
                    ("role", place(d.lineno, d.col_offset), place(d.end_lineno or 0, d.end_col_offset or 0), DECORATOR)
                    for d in node.decorator_list
                ]
            if isinstance(node, ast.Import | ast.ImportFrom):
                end = place(node.end_lineno or 0, node.end_col_offset or 0)
                expected.append(("role", place(node.lineno, node.col_offset), end, IMPORT))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
                    if isinstance(default, ast.Constant):
                        expected.append(("role", place(default.lineno, default.col_offset), -1, DEFAULT))
            if isinstance(node, ast.Call):
                for argument in [*node.args, *(k.value for k in node.keywords)]:
                    if isinstance(argument, ast.Name | ast.Constant):
                        expected.append(("role", place(argument.lineno, argument.col_offset), -1, ARGUMENT))
            if isinstance(node, ast.Assign):
                names = [t for t in node.targets if isinstance(t, ast.Name)]
                expected += [("role", place(t.lineno, t.col_offset), -1, TARGET) for t in names]
        for aspect, start, end, value in expected:
            values = read[aspect][start : end if end > 0 else start + 1]
            count += 1
            # A call on a decorator's line is part of the decorator; one inside an f-string is part of the string.
            inside = read["role"][start] == DECORATOR or (read["region"][start] == STRING and aspect == "role")
            if not (values == value).all() and not (value in (ARGUMENT, TARGET) and inside):
                wrong.append((name, aspect, value, text[start : start + 40]))
    assert count > 2000
    assert len(wrong) <= 0.002 * count, random.Random(0).sample(wrong, min(20, len(wrong)))
