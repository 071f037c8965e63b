"""What holds at the tokens of hand-made sources, by Python's own parser."""

import ast
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from lightsae.activations.corpus.builtin import standard_library_documents
from lightsae.analysis.concepts.documents import DocumentText
from lightsae.analysis.concepts.python.source import parse
from lightsae.analysis.concepts.read import mark_python
from lightsae.analysis.concepts.truth import Marks

SOURCE = '''"""Of the module."""
import os
from .near import thing as other

LIMIT = 10

@wraps(LIMIT, x=1)
class Small(Base, metaclass=Meta):
    """Of the class."""

    def run(self, a, b: int = 3, *rest, key=None) -> str:
        total = -a + len(rest)  # a note
        if total > LIMIT and a:
            return f"{total}!"
        elif not b:
            raise ValueError("too %s" % b)
        else:
            items = [x * 2 for x in rest if x]
        for item in items:
            self.seen[item] = other(item, key="k")
        def inner(z):
            return z + total
        return inner
'''


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("keyword.flow.if.statement", ["if"]),
        ("keyword.flow.if.expression", ["if"]),
        ("keyword.flow.for", ["for", "for"]),
        ("keyword.definition.def", ["def", "def"]),
        ("string.docstring.module", ['"', '"', '"', "Of", "the", "module", ".", '"', '"', '"']),
        ("string.docstring.class", ['"', '"', '"', "Of", "the", "class", ".", '"', '"', '"']),
        ("string.f_field", ["{", "total", "}"]),
        ("string.conversion.s", ["%", "s"]),
        ("comment.after_code", ["#", "a", "note"]),
        ("import_part.module", ["os", "near"]),
        ("import_part.relative", ["."]),
        ("import_part.alias", ["other"]),
        ("decorator.class", ["@", "wraps", "(", "LIMIT", ",", "x", "=", "1", ")"]),
        ("defined_name.class", ["Small"]),
        ("defined_name.method", ["run"]),
        ("defined_name.function", ["inner"]),
        ("base_class", ["Base"]),
        ("class_keyword", ["metaclass", "=", "Meta"]),
        ("parameter.self", ["self"]),
        ("parameter.ordinary", ["a", "b", "z"]),
        ("parameter.ordinary.with_default", ["b"]),
        ("parameter.variadic", ["rest"]),
        ("parameter.keyword_only.with_default", ["key"]),
        ("default.int", ["3"]),
        ("default.none", ["None"]),
        ("annotation.parameter", ["int"]),
        ("annotation.return", ["str"]),
        ("operator.unary.minus", ["-"]),
        ("operator.arithmetic.add", ["+", "+"]),
        ("operator.arithmetic.multiply", ["*"]),
        ("operator.unpacking.list", ["*"]),
        ("operator.comparison.greater", [">"]),
        ("equals.default", ["=", "="]),
        ("equals.keyword_argument", ["=", "=", "="]),
        ("equals.assignment", ["=", "=", "=", "="]),
        ("name.builtin.function", ["len"]),
        ("name.builtin.exception", ["ValueError"]),
        ("name.builtin.type", ["int", "str"]),
        ("name.global.variable", ["LIMIT", "LIMIT", "LIMIT"]),
        ("name.global.import", ["other"]),
        ("name.local.loop", ["x", "x", "x", "item", "item", "item"]),
        ("name.free.variable", ["total"]),
        ("name.parameter.self", ["self"]),
        ("attribute.read", ["seen"]),
        ("attribute_of.of_name.self", ["seen"]),
        ("argument.keyword.name", ["x", "key"]),
        ("argument.keyword.value", ["1", '"', "k", '"']),
        ("argument.positional.first", ["LIMIT", "rest", '"', "too", "%", "s", '"', "%", "b", "item"]),
        ("expression.comprehension.element", ["x", "*", "2"]),
        ("expression.comprehension.iterable", ["rest"]),
        ("expression.comprehension.condition", ["x"]),
        ("expression.binary.formatting", ['"', "too", "%", "s", '"', "%", "b"]),
        ("header.elif", ["elif", "not", "b", ":"]),
        ("header.else.branch", ["else", ":"]),
        ("header_part.for.target", ["item"]),
        ("header_part.for.iter", ["items"]),
        ("block.branch.elif", ["raise", "ValueError", "(", '"', "too", "%", "s", '"', "%", "b", ")"]),
        ("statement.raise.exc", ["ValueError", "(", '"', "too", "%", "s", '"', "%", "b", ")"]),
        ("statement.assign.targets", ["LIMIT", "total", "items", "self", ".", "seen", "[", "item", "]"]),
        ("scope.function.nested", ["return", "z", "+", "total"]),
        ("statement_in_block.only", ["return", "f", '"', "{", "total", "}", "!", '"']),
        ("bracket.subscript.open", ["["]),
        ("bracket.list.open", ["["]),
        ("bracket.bases.open", ["("]),
        ("bracket.parameters.close", [")", ")"]),
        ("number.integer.decimal.2", ["2"]),
        ("line.blank", ["", "", ""]),
    ],
)
def test_what_holds_where(python_at: Callable[[str, str], list[str]], name: str, expected: list[str]) -> None:
    found = python_at(SOURCE, name)
    if name == "statement_in_block.only":
        found = found[: len(expected)]
    assert found == expected


def test_depths_are_nested(python_at: Callable[[str, str], list[str]]) -> None:
    source = "a = f(b, [c, {d: (e,)}])\n"
    second = "in_brackets.at_least_2"
    assert python_at(source, "in_brackets") == ["b", ",", "[", "c", ",", "{", "d", ":", "(", "e", ",", ")", "}", "]"]
    assert python_at(source, second) == ["c", ",", "{", "d", ":", "(", "e", ",", ")", "}"]
    assert python_at(source, f"{second}.at_least_3") == ["d", ":", "(", "e", ",", ")"]
    assert python_at(source, f"{second}.at_least_3.at_least_4") == ["e", ","]


def test_lines_and_their_indentation(python_at: Callable[[str, str], list[str]]) -> None:
    source = "def f(a,\n      b):\n    if a:\n        # why\n        c = 1\n    return b\nd = 2\n"
    assert python_at(source, "line.first") == ["def", "b", "if", "#", "c", "return", "d"]
    assert python_at(source, "line.last") == [",", ":", ":", "why", "1", "b", "2"]
    deep = python_at(source, "indented.at_least_2")
    assert [word for word in deep if word] == ["#", "why", "c", "=", "1"]
    assert [word for word in python_at(source, "line.continued") if word] == ["b", ")", ":"]
    assert python_at(source, "statement_start.dedented") == ["return", "d"]
    assert python_at(source, "statement_start.indented") == ["if", "c"]
    assert python_at(source, "statement_start.level") == ["def"]
    assert python_at(source, "block_end.last_token") == ["1", "b"]


def test_colons_and_lambdas(python_at: Callable[[str, str], list[str]]) -> None:
    source = "f(lambda a, b=1: a[1:2], key={c: d})\nx: int = lambda: y\nif x: pass\n"
    for kind, count in (("lambda", 2), ("slice", 1), ("mapping", 1), ("annotation", 1), ("block", 1)):
        assert python_at(source, f"colon.{kind}") == [":"] * count, kind
    assert python_at(source, "equals.default") == ["="]
    assert python_at(source, "parameter_of.lambda") == ["a", "b"]
    assert python_at(source, "name.parameter") == ["a"]


def test_names_are_bound_where_the_language_says(python_at: Callable[[str, str], list[str]]) -> None:
    source = (
        "def outer(p):\n    global g\n    g = p\n    v = 1\n    class C:\n        v = 2\n        w = v\n"
        "        def m(self):\n            nonlocal_ = v\n            return [v for q in p]\n    return len\n"
    )
    assert python_at(source, "name.global.variable") == ["g"]
    # A method sees the function's `v`, and not the class's.
    assert python_at(source, "name.free.variable") == ["v", "v"]
    assert python_at(source, "name.class.variable") == ["v", "w", "v"]
    assert python_at(source, "name.free.parameter") == ["p"]
    assert python_at(source, "name.builtin") == ["len"]


def test_letters_beyond_ascii_move_nothing(python_at: Callable[[str, str], list[str]]) -> None:
    source = 'grösse = "été"; x = f(grösse)\nif x:\n  y = "ä", x.z\n'
    assert python_at(source, "argument.positional.first") == ["grösse"]
    assert python_at(source, "attribute.read") == ["z"]
    assert python_at(source, "expression.tuple.element.first") == ['"', "ä", '"']


def test_what_is_no_python_is_not_known() -> None:
    for text in ("It was a dark night.", "x = (", "def", "a\rb\r", "x = 1\0", "", "# only a note\n"):
        assert mark_python(DocumentText(0, [text]), Marks()) == 0, text


def test_a_document_that_is_cut_off_is_known_up_to_the_cut() -> None:
    whole = "x = 1\ndef f(a):\n    b = a\n    return g(b,\n"
    source = parse(whole)
    assert source is not None
    assert source.text[: source.end] == "x = 1\ndef f(a):\n    b = a\n"


def modules() -> Iterator[tuple[str, str]]:
    for document in list(standard_library_documents("validation"))[::9]:
        if not document.name.startswith("pydoc_data"):
            yield document.name, document.text


def test_the_standard_library_has_more_than_three_hundred_concepts_and_children_lie_in_parents() -> None:
    marks, known = Marks(), 0
    for name, text in modules():
        read = mark_python(DocumentText(0, [text]), marks)
        assert read == len(text), name
        known += read
        found = marks.take()
        assert (found[:, 1] <= found[:, 2]).all(), name
        assert (found >= 0).all(), name
        assert (found[:, 2] <= len(text) + 1).all(), name
        _check_calls(text, found, marks, name)
    assert known > 50_000
    assert len(marks.names) >= 300


def _check_calls(text: str, found: np.ndarray, marks: Marks, name: str) -> None:
    """As many calls are marked as the tree has, each where its text is."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    of_calls = found[found[:, 0] == marks.names.get("expression.call", -1)]
    said = sorted(text[start:end] for _, start, end in of_calls)
    in_fields = sum(
        isinstance(inner, ast.Call)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.JoinedStr)
        for inner in ast.walk(node)
    )
    assert len(said) <= len(calls) <= len(said) + in_fields, name
    expected = {ast.get_source_segment(text, node) for node in calls}
    assert set(said) <= expected, name
