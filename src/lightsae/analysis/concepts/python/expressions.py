"""Concepts of Python's expressions: what they are, and what each part is to the whole.

Axes: C characters.

Names are resolved where they stand, so that the walk carries the scopes around it. What stands in the fields of an
f-string is not read: before Python 3.12 nothing says where it is.
"""

import ast

from lightsae.analysis.concepts.python.scopes import COMPREHENSIONS, Scope, Scopes, parameters
from lightsae.analysis.concepts.python.source import Source
from lightsae.analysis.concepts.truth import Marks

_NODES = {
    **{ast.BinOp: "binary", ast.UnaryOp: "unary", ast.BoolOp: "boolean", ast.Compare: "comparison"},
    **{ast.Call: "call", ast.Attribute: "attribute", ast.Subscript: "subscript", ast.Starred: "starred"},
    **{ast.List: "list", ast.Tuple: "tuple", ast.Set: "set", ast.Dict: "dict", ast.Lambda: "lambda"},
    **{ast.IfExp: "conditional", ast.Await: "await", ast.Yield: "yield", ast.YieldFrom: "yield_from"},
    **{ast.NamedExpr: "walrus", ast.Slice: "slice", ast.ListComp: "comprehension.list"},
    **{ast.SetComp: "comprehension.set", ast.DictComp: "comprehension.dict"},
    ast.GeneratorExp: "comprehension.generator",
}
_PARTS = {
    "binary": ("left", "right"),
    "subscript": ("value", "slice"),
    "conditional": ("body", "test", "orelse"),
    "slice": ("lower", "upper", "step"),
    "unary": ("operand",),
    "lambda": ("body",),
}
_CALLED = frozenset(
    "len isinstance print str int getattr range super open type list dict tuple set repr hasattr sorted enumerate zip "
    "min max map bool bytes ValueError TypeError RuntimeError KeyError issubclass iter next setattr join append format "
    "startswith split get add write pop update compile match".split()
)
_ORDINALS = ("first", "second", "third")


class Expressions:
    """Marks expressions.

    Args:
        source: Where they stand.
        scopes: The scopes of its names.
        marks: Takes the marks.
    """

    def __init__(self, source: Source, scopes: Scopes, marks: Marks) -> None:
        self.source, self.scopes, self.marks = source, scopes, marks
        self.stack: list[Scope] = [scopes.of[source.tree]]

    def begin(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword | ast.alias | ast.excepthandler) -> int:
        """Return where a node begins."""
        return self.source.place(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword | ast.alias | ast.excepthandler) -> int:
        """Return where a node ends."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.source.place(node.end_lineno, node.end_col_offset)

    def mark(self, name: str, node: ast.expr | ast.stmt | ast.arg | ast.keyword | ast.alias) -> None:
        """Mark all of a node."""
        self.marks.add(name, self.begin(node), self.end(node))

    def walk(self, node: ast.AST | None, inside: ast.AST | None = None) -> None:
        """Mark an expression and all within it; `inside` is the expression that it is part of."""
        if not isinstance(node, ast.expr):
            return
        if (kind := _NODES.get(type(node))) is not None:
            name = f"expression.{kind}"
            self.mark(name, node)
            if isinstance(inside, type(node)):
                self.mark(f"{name}.within_another", node)
            for part in _PARTS.get(kind, ()):
                if isinstance(child := getattr(node, part), ast.expr):
                    self.mark(f"{name}.{part}", child)
        if isinstance(node, ast.Constant | ast.JoinedStr):
            self._constant(node)
            return
        if (own := getattr(self, f"_{type(node).__name__}", None)) is not None:
            own(node, inside)
        elif isinstance(node, COMPREHENSIONS):
            self._comprehension(node)
        else:
            for child in ast.iter_child_nodes(node):
                self.walk(child, node)

    def _constant(self, node: ast.Constant | ast.JoinedStr) -> None:
        value = node.value if isinstance(node, ast.Constant) else ""
        kind = "ellipsis" if value is ... else type(value).__name__
        self.mark(f"constant.{kind}", node)

    def _Name(self, node: ast.Name, inside: ast.AST | None) -> None:
        use = {ast.Load: "read", ast.Store: "bound", ast.Del: "deleted"}[type(node.ctx)]
        self.mark(f"name_use.{use}", node)
        binding = self.scopes.resolve(self.stack, node.id)
        if node.id in ("self", "cls") and binding is not None and binding.scope in ("parameter", "free"):
            self.mark(f"name.{binding.scope}.{node.id}", node)
        elif binding is not None:
            self.mark(f"name.{binding.scope}" + ("" if binding.scope == "parameter" else f".{binding.kind}"), node)
        if isinstance(inside, ast.Call) and inside.func is node:
            self.mark("name_use.read.called", node)

    def _Attribute(self, node: ast.Attribute, inside: ast.AST | None) -> None:
        end = self.end(node)
        start = end - len(node.attr)
        use = {ast.Load: "read", ast.Store: "bound", ast.Del: "deleted"}[type(node.ctx)]
        if isinstance(inside, ast.Call) and inside.func is node:
            use = "read.called"
        self.marks.add(f"attribute.{use}", start, end)
        self.mark("expression.attribute.object", node.value)
        whose = {ast.Name: "of_name", ast.Attribute: "of_attribute", ast.Call: "of_call", ast.Subscript: "of_subscript"}
        kind = whose.get(type(node.value), "of_other")
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            kind = f"of_name.{node.value.id}"
        self.marks.add(f"attribute_of.{kind}", start, end)
        self.walk(node.value, node)

    def _Call(self, node: ast.Call, inside: ast.AST | None) -> None:
        self.mark("expression.call.callee", node.func)
        called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        start, end = self.end(node.func), self.end(node)
        kind = "method" if isinstance(node.func, ast.Attribute) else "function"
        if called[:1].isupper():
            kind = "constructor"
        self.marks.add(f"inside_call.{kind}", start, end)
        if called in _CALLED:
            self.marks.add(f"inside_call.{kind}.{called}", start, end)
        self.walk(node.func, node)
        given: list[ast.expr | ast.keyword] = [*node.args, *node.keywords]
        given.sort(key=lambda one: (one.lineno, one.col_offset))
        for number, one in enumerate(given):
            value = one.value if isinstance(one, ast.keyword) else one
            if isinstance(one, ast.keyword):
                self.mark("argument.keyword" if one.arg else "argument.mapping", one)
                if one.arg:
                    self.marks.add("argument.keyword.name", self.begin(one), self.begin(one) + len(one.arg))
                    self.mark("argument.keyword.value", value)
            elif isinstance(one, ast.Starred):
                self.mark("argument.unpacked", one)
            else:
                place = _ORDINALS[number] if number < len(_ORDINALS) else "later"
                self.mark(f"argument.positional.{place}", one)
            if len(given) == 1:
                self.mark("argument_count.only", one)
            elif number == len(given) - 1:
                self.mark("argument_count.last_of_several", one)
            self.mark(f"argument_kind.{_kind(value)}", value)
            self.walk(value, node)

    def _Dict(self, node: ast.Dict, inside: ast.AST | None) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if key is not None:
                self.mark("expression.dict.key", key)
                self.walk(key, node)
            self.mark("expression.dict.value", value)
            self.walk(value, node)

    def _elements(self, node: ast.List | ast.Tuple | ast.Set, inside: ast.AST | None) -> None:
        kind = _NODES[type(node)]
        for number, child in enumerate(node.elts):
            place = "first" if not number else "last" if number == len(node.elts) - 1 else "middle"
            self.mark(f"expression.{kind}.element.{place}", child)
            self.walk(child, node)

    _List = _Tuple = _Set = _elements

    def _BoolOp(self, node: ast.BoolOp, inside: ast.AST | None) -> None:
        self.mark(f"expression.boolean.{type(node.op).__name__.lower()}", node)
        for child in node.values:
            self.walk(child, node)

    def _BinOp(self, node: ast.BinOp, inside: ast.AST | None) -> None:
        formats = (
            isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
        )
        self.mark(f"expression.binary.{'formatting' if formats else type(node.op).__name__.lower()}", node)
        self.walk(node.left, node)
        self.walk(node.right, node)

    def _Compare(self, node: ast.Compare, inside: ast.AST | None) -> None:
        self.mark(f"expression.comparison.{type(node.ops[0]).__name__.lower()}", node)
        self.mark("expression.comparison.left", node.left)
        self.walk(node.left, node)
        for child in node.comparators:
            self.mark("expression.comparison.right", child)
            self.walk(child, node)

    def _UnaryOp(self, node: ast.UnaryOp, inside: ast.AST | None) -> None:
        self.mark(f"expression.unary.{type(node.op).__name__.lower()}", node)
        self.walk(node.operand, node)

    def _Subscript(self, node: ast.Subscript, inside: ast.AST | None) -> None:
        self.walk(node.value, node)
        self.mark(f"expression.subscript.slice.{_kind(node.slice)}", node.slice)
        self.walk(node.slice, node)

    def _Lambda(self, node: ast.Lambda, inside: ast.AST | None) -> None:
        self.parameters(node.args, "lambda")
        self.within(node, node.body)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        elements = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
        self.walk(node.generators[0].iter, node)
        self.stack.append(self.scopes.of[node])
        for element in elements:
            self.mark("expression.comprehension.element", element)
            self.walk(element, node)
        for number, generator in enumerate(node.generators):
            self.mark("expression.comprehension.target", generator.target)
            self.mark("expression.comprehension.iterable", generator.iter)
            self.walk(generator.target, node)
            if number:
                self.walk(generator.iter, node)
            for condition in generator.ifs:
                self.mark("expression.comprehension.condition", condition)
                self.walk(condition, node)
        self.stack.pop()

    def within(self, opens: ast.AST, *nodes: ast.AST) -> None:
        """Mark expressions within a scope of their own."""
        self.stack.append(self.scopes.of[opens])
        for node in nodes:
            self.walk(node)
        self.stack.pop()

    def parameters(self, args: ast.arguments, kind: str) -> None:
        """Mark the parameters of a function, a method or a lambda, with their annotations and defaults."""
        everyone = parameters(args)
        ordinary = [*args.posonlyargs, *args.args]
        defaults = dict(zip(ordinary[len(ordinary) - len(args.defaults) :], args.defaults, strict=True))
        defaults |= {
            one: value for one, value in zip(args.kwonlyargs, args.kw_defaults, strict=True) if value is not None
        }
        for number, one in enumerate(everyone):
            start = self.begin(one)
            name = {args.vararg: "variadic", args.kwarg: "variadic_keyword"}.get(one) or (
                "keyword_only" if one in args.kwonlyargs else "ordinary"
            )
            if not number and kind == "method" and one.arg in ("self", "cls"):
                name = one.arg
            self.marks.add(f"parameter.{name}", start, start + len(one.arg))
            self.marks.add(f"parameter_of.{kind}", start, start + len(one.arg))
            if one.annotation is not None:
                self.mark("annotation.parameter", one.annotation)
                self.walk(one.annotation)
            if (default := defaults.get(one)) is not None:
                self.mark(f"default.{_kind(default)}", default)
                self.marks.add(f"parameter.{name}.with_default", start, start + len(one.arg))
                self.walk(default)


def _kind(node: ast.AST) -> str:
    """Return what sort of value an expression gives, as far as it says."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return "negative_number" if isinstance(node.op, ast.USub) else "operation"
    if isinstance(node, ast.Constant):
        return "none" if node.value is None else type(node.value).__name__
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.Compare | ast.UnaryOp):
        return "operation"
    kinds = {ast.Name: "name", ast.Attribute: "attribute", ast.Call: "call", ast.JoinedStr: "str", ast.Slice: "slice"}
    kinds |= {ast.Tuple: "tuple", ast.Subscript: "subscript", ast.Lambda: "lambda"}
    return kinds.get(type(node), "other")
