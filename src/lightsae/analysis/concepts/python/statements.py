"""Concepts of Python's statements: what they are, their headers and blocks, definitions, docstrings, imports.

Axes: C characters.
"""

import ast
from collections.abc import Sequence

from lightsae.analysis.concepts.python.expressions import Expressions
from lightsae.analysis.concepts.python.scopes import Scopes
from lightsae.analysis.concepts.python.source import Source
from lightsae.analysis.concepts.truth import Marks

_SIMPLE = {
    **{ast.Assign: "assign", ast.AugAssign: "augmented_assign", ast.AnnAssign: "annotated_assign"},
    **{ast.Return: "return", ast.Raise: "raise", ast.Assert: "assert", ast.Delete: "delete", ast.Pass: "pass"},
    **{ast.Break: "break", ast.Continue: "continue", ast.Import: "import.plain", ast.ImportFrom: "import.from"},
    **{ast.Global: "global", ast.Nonlocal: "nonlocal", ast.Expr: "expression"},
}
# Of each statement, the parts that are expressions, by the names of their fields.
_PARTS = {
    **{ast.Assign: ("targets", "value"), ast.AugAssign: ("target", "value"), ast.Return: ("value",)},
    **{ast.AnnAssign: ("target", "annotation", "value"), ast.Raise: ("exc", "cause"), ast.Assert: ("test", "msg")},
    **{ast.Delete: ("targets",), ast.If: ("test",), ast.While: ("test",), ast.For: ("target", "iter")},
    **{ast.AsyncFor: ("target", "iter"), ast.ExceptHandler: ("type",), ast.Expr: ("value",)},
}
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Node = ast.stmt | ast.excepthandler


class Statements(Expressions):
    """Marks a module."""

    def module(self) -> None:
        """Mark everything."""
        tree = self.source.tree
        self._docstring(tree, "module")
        for statement in tree.body:
            if not isinstance(statement, _Definition):
                self.mark("scope.module", statement)
        self._block(tree.body, None, ())

    def _block(self, body: Sequence[ast.stmt], name: str | None, around: tuple[str, ...]) -> None:
        """Mark a block of statements, inside definitions of some kinds."""
        if not body:
            return
        start, end = self._begin_of(body[0]), self.end(body[-1])
        if name is not None:
            self.marks.add(f"block.{name}", start, end)
            self._statement_place("first" if len(body) > 1 else "only", body[0])
            if len(body) > 1:
                self._statement_place("last", body[-1])
            last = self.source.signs[self.source.number_before(end)]
            self.marks.add("block_end.last_token", last.start, last.end)
        for statement in body:
            self._statement(statement, around)

    def _statement_place(self, place: str, statement: ast.stmt) -> None:
        body = getattr(statement, "body", None)
        end = self._header_end(body) if body else self.end(statement)
        self.marks.add(f"statement_in_block.{place}", self._begin_of(statement), end)

    def _begin_of(self, statement: _Node) -> int:
        decorators = getattr(statement, "decorator_list", None)
        if not decorators:
            return self.begin(statement)
        return self.source.signs[self.source.number_before(self.begin(decorators[0]))].start

    def _header_end(self, body: Sequence[ast.stmt]) -> int:
        return self.source.signs[self.source.number_before(self._begin_of(body[0]))].end

    def _statement(self, node: ast.stmt, around: tuple[str, ...]) -> None:
        kind = _SIMPLE.get(type(node))
        if kind is not None:
            self.mark(f"statement.{kind}", node)
        self._parts(node, f"statement.{kind}" if kind else "")
        if isinstance(node, _Definition):
            self._definition(node, around)
        elif isinstance(node, ast.If):
            self._if(node, around)
        elif isinstance(node, ast.For | ast.AsyncFor | ast.While):
            name = "while" if isinstance(node, ast.While) else "for"
            self._header(name, node, node.body)
            self._block(node.body, f"loop.{name}", around)
            self._else(node.orelse, "loop", around)
        elif isinstance(node, ast.With | ast.AsyncWith):
            self._with(node, around)
        elif isinstance(node, ast.Try) or type(node).__name__ == "TryStar":
            self._try(node, around)  # type: ignore[arg-type]
        elif isinstance(node, ast.Match):
            self._match(node, around)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self._import(node)
        elif isinstance(node, ast.Return) and node.value is None:
            self.mark("statement.return.nothing", node)

    def _parts(self, node: _Node, name: str) -> None:
        for part in _PARTS.get(type(node), ()):
            found = getattr(node, part)
            for child in found if isinstance(found, list) else [found]:
                if child is None:
                    continue
                if name == "statement.expression":
                    kinds = {ast.Call: "call", ast.Yield: "yield", ast.Await: "await", ast.Constant: "constant"}
                    self.mark(f"{name}.{kinds.get(type(child), 'other')}", child)
                elif name:
                    self.mark(f"{name}.{part}", child)
                else:
                    self.mark(f"header_part.{_name_of(node)}.{part}", child)
                if part == "annotation":
                    self.mark("annotation.variable", child)
                self.walk(child)

    def _header(self, name: str, node: _Node, body: Sequence[ast.stmt]) -> None:
        self.marks.add(f"header.{name}", self.begin(node), self._header_end(body))

    def _if(self, node: ast.If, around: tuple[str, ...]) -> None:
        name = "if"
        if self.source.text.startswith("elif", self.begin(node)):
            name = "elif"
        elif any(isinstance(part, ast.Constant) and part.value == "__main__" for part in ast.walk(node.test)):
            self._header("if.main", node, node.body)
        self._header(name, node, node.body)
        self._block(node.body, f"branch.{name}", around)
        following = node.orelse
        if len(following) == 1 and self.source.text.startswith("elif", self._begin_of(following[0])):
            self._statement(following[0], around)
        else:
            self._else(following, "branch", around)

    def _else(self, body: Sequence[ast.stmt], of: str, around: tuple[str, ...], word: str = "else") -> None:
        if body:
            number = self.source.number_before(self._begin_of(body[0]))
            colon, keyword = self.source.signs[number], self.source.signs[number - 1]
            self.marks.add(f"header.{word}" + (f".{of}" if word == "else" else ""), keyword.start, colon.end)
            self._block(body, f"{of}.{word}", around)

    def _with(self, node: ast.With | ast.AsyncWith, around: tuple[str, ...]) -> None:
        self._header("with", node, node.body)
        for item in node.items:
            self.mark("header_part.with.context", item.context_expr)
            self.walk(item.context_expr)
            if item.optional_vars is not None:
                self.mark("header_part.with.target", item.optional_vars)
                self.walk(item.optional_vars)
        self._block(node.body, "with", around)

    def _try(self, node: ast.Try, around: tuple[str, ...]) -> None:
        self._header("try", node, node.body)
        self._block(node.body, "try.body", around)
        for handler in node.handlers:
            self._header("except" if handler.type is not None else "except.everything", handler, handler.body)
            self._parts(handler, "")
            if handler.name and handler.type is not None:
                sign = self.source.signs[self.source.number_at(self.end(handler.type))]
                while sign.text != handler.name:
                    sign = self.source.signs[self.source.number_at(sign.end)]
                self.marks.add("header_part.except.name", sign.start, sign.end)
            self._block(handler.body, "try.except", around)
        self._else(node.orelse, "try", around)
        self._else(node.finalbody, "try", around, "finally")

    def _match(self, node: ast.Match, around: tuple[str, ...]) -> None:
        self.marks.add("header.match", self.begin(node), self.end(node.subject) + 1)
        self.walk(node.subject)
        for case in node.cases:
            pattern = self.source.place(case.pattern.lineno, case.pattern.col_offset)
            keyword = self.source.signs[self.source.number_before(pattern)]
            self.marks.add("header.case", keyword.start, self._header_end(case.body))
            if case.guard is not None:
                self.walk(case.guard)
            self._block(case.body, "case", around)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.ImportFrom):
            number = self.source.number_at(self.begin(node)) + 1
            while (sign := self.source.signs[number]).text != "import":
                self.marks.add(
                    f"import_part.{'relative' if set(sign.text) == {'.'} else 'module'}", sign.start, sign.end
                )
                number += 1
            if node.module == "__future__":
                self.mark("statement.import.from.future", node)
        for alias in node.names:
            start, end = self.begin(alias), self.end(alias)
            kind = "module" if isinstance(node, ast.Import) else "name"
            self.marks.add(f"import_part.{kind}", start, start + len(alias.name))
            if alias.asname:
                self.marks.add("import_part.alias", end - len(alias.asname), end)

    def _definition(self, node: _Definition, around: tuple[str, ...]) -> None:
        kind = "class" if isinstance(node, ast.ClassDef) else "method" if around[-1:] == ("class",) else "function"
        self._decorators(node, kind)
        number = self.source.number_at(self.begin(node))
        while self.source.signs[number].text not in ("def", "class"):
            number += 1
        name = self.source.signs[number + 1]
        self.marks.add(f"defined_name.{kind}", name.start, name.end)
        if kind == "method" and node.name.startswith("__") and node.name.endswith("__"):
            special = node.name in ("__init__", "__repr__", "__eq__", "__enter__", "__exit__", "__len__", "__iter__")
            self.marks.add(
                f"defined_name.method.dunder.{node.name[2:-2] if special else 'other'}", name.start, name.end
            )
        elif kind != "class" and node.name.startswith("_"):
            self.marks.add(f"defined_name.{kind}.private", name.start, name.end)
        self._header(f"definition.{kind}", node, node.body)
        self._docstring(node, kind)
        start, end = self._begin_of(node.body[0]), self.end(node.body[-1])
        if isinstance(node, ast.ClassDef):
            self._class_header(node)
            self.marks.add("scope.class", start, end)
        else:
            self.parameters(node.args, kind)
            if node.returns is not None:
                self.mark("annotation.return", node.returns)
                self.walk(node.returns)
            self._function_scope(node, kind, around, start, end)
        self.stack.append(self.scopes.of[node])
        self._block(node.body, f"definition.{kind}", (*around, "class" if kind == "class" else "function"))
        self.stack.pop()

    def _function_scope(self, node: _Function, kind: str, around: tuple[str, ...], start: int, end: int) -> None:
        self.marks.add(f"scope.function.{kind}", start, end)
        if "function" in around:
            self.marks.add("scope.function.nested", start, end)
        if isinstance(node, ast.AsyncFunctionDef):
            self._header("definition.async", node, node.body)
            self.marks.add("scope.function.async", start, end)
        if kind == "method" and node.name == "__init__":
            self.marks.add("scope.function.method.init", start, end)
        if node.name.startswith("test"):
            self.marks.add("scope.function.test", start, end)
        if any(isinstance(part, ast.Yield | ast.YieldFrom) for part in ast.walk(node)):
            self.marks.add("scope.function.generator", start, end)

    def _class_header(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            self.mark("base_class" + (".of_module" if isinstance(base, ast.Attribute) else ".plain"), base)
            self.walk(base)
        for one in node.keywords:
            self.mark("class_keyword", one)
            self.walk(one.value)

    def _decorators(self, node: _Definition, kind: str) -> None:
        for one in node.decorator_list:
            start, end = self.begin(one), self.end(one)
            sign = self.source.signs[self.source.number_before(start)]
            self.marks.add(f"decorator.{kind}", sign.start, end)
            if isinstance(one, ast.Name) and one.id in ("property", "staticmethod", "classmethod"):
                self.marks.add(f"decorator.{kind}.{one.id}", sign.start, end)
            elif isinstance(one, ast.Call):
                self.marks.add("decorator.with_arguments", sign.start, end)
            self.walk(one)

    def _docstring(self, node: ast.Module | _Definition, kind: str) -> None:
        first = node.body[0]
        if not isinstance(first, ast.Expr) or not isinstance(value := first.value, ast.Constant):
            return
        if isinstance(value.value, str):
            start, end = self.begin(value), self.end(value)
            self.marks.add(f"string.docstring.{kind}", start, end)
            line = self.source.text.find("\n", start, end)
            if line >= 0:
                self.marks.add("string.docstring.first_line", start, line)
                last = self.source.text.rfind("\n", start, end)
                self.marks.add("string.docstring.last_line", last + 1, end)
            else:
                self.marks.add("string.docstring.single_line", start, end)


def _name_of(node: _Node) -> str:
    names = {ast.If: "if", ast.While: "while", ast.For: "for", ast.AsyncFor: "for", ast.ExceptHandler: "except"}
    return names[type(node)]


def mark_structure(source: Source, marks: Marks) -> None:
    """Mark what the syntax tree says."""
    Statements(source, Scopes(source.tree), marks).module()
