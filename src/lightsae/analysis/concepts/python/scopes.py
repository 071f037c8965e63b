"""Which scope binds each name of a module, by the rules of the language.

A comprehension is read as part of the function around it, as `locals()` has it since Python 3.12; its variables are its
own. Names that nothing binds and that are no builtins (a star import may bring them) are not resolved.
"""

import ast
import builtins
from dataclasses import dataclass, field
from typing import NamedTuple

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_BUILTINS = frozenset(dir(builtins))


class Binding(NamedTuple):
    """Where a name is bound, from where it is used, and how it got its value there."""

    scope: str
    kind: str


@dataclass
class Scope:
    """What a module, a class, a function, a lambda or a comprehension binds.

    Attributes:
        kind: `module`, `class`, `function`, `comprehension`.
        bound: By name, how it is bound first: `parameter`, `import`, `function`, `class`, `loop`, `handler`, `with`,
            `variable`.
        declared: Names that `global` and `nonlocal` declare.
    """

    kind: str
    bound: dict[str, str] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)

    def bind(self, name: str, kind: str) -> None:
        if name not in self.declared:
            self.bound.setdefault(name, kind)


class Scopes(ast.NodeVisitor):
    """The scopes of a module, by the node that opens each."""

    def __init__(self, tree: ast.Module) -> None:
        self.of: dict[ast.AST, Scope] = {tree: Scope("module")}
        self._stack = [self.of[tree]]
        self._module = self._stack[0]
        self._kind = "variable"
        self.generic_visit(tree)

    @staticmethod
    def resolve(stack: list[Scope], name: str) -> Binding | None:
        """Return what binds a name that is used within the last of some nested scopes; None: nothing that is known."""
        crossed = False
        for place in range(len(stack) - 1, -1, -1):
            scope = stack[place]
            declared = scope.declared.get(name)
            if declared == "global":
                return Binding("global", stack[0].bound.get(name, "variable"))
            is_seen = scope.kind != "class" or place == len(stack) - 1
            if is_seen and declared is None and name in scope.bound:
                kind = scope.bound[name]
                if scope.kind in ("module", "class"):
                    return Binding("global" if scope.kind == "module" else "class", kind)
                return Binding("free" if crossed else "parameter" if kind == "parameter" else "local", kind)
            crossed = crossed or scope.kind == "function"
        return Binding("builtin", _kind_of_builtin(name)) if name in _BUILTINS else None

    def _within(self, node: ast.AST, kind: str) -> Scope:
        self.of[node] = Scope(kind)
        return self.of[node]

    def _visit_all(self, scope: Scope, *nodes: ast.AST) -> None:
        self._stack.append(scope)
        for node in nodes:
            self.visit(node)
        self._stack.pop()

    def _bind_as(self, kind: str, target: ast.AST | None) -> None:
        if target is not None:
            before, self._kind = self._kind, kind
            self.visit(target)
            self._kind = before

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._stack[-1].bind(node.id, self._kind)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        around = next(scope for scope in reversed(self._stack) if scope.kind != "comprehension")
        around.bind(node.target.id, "variable")

    def visit_Global(self, node: ast.Global) -> None:
        for name in node.names:
            self._stack[-1].declared[name] = "global"
            self._module.bind(name, "variable")

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self._stack[-1].declared |= dict.fromkeys(node.names, "nonlocal")

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            self._stack[-1].bind(alias.asname or alias.name.partition(".")[0], "import")

    visit_ImportFrom = visit_Import

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self._bind_as("loop", node.target)
        for child in (*node.body, *node.orelse):
            self.visit(child)

    visit_AsyncFor = visit_For

    def visit_withitem(self, node: ast.withitem) -> None:
        self.visit(node.context_expr)
        self._bind_as("with", node.optional_vars)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self._stack[-1].bind(node.name, "handler")
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        if node.name:
            self._stack[-1].bind(node.name, "variable")
        self.generic_visit(node)

    visit_MatchStar = visit_MatchAs

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._stack[-1].bind(node.name, "function")
        for child in (*node.decorator_list, *_evaluated_outside(node.args)):
            self.visit(child)
        if node.returns is not None:
            self.visit(node.returns)
        self._function(node, *node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for child in _evaluated_outside(node.args):
            self.visit(child)
        self._function(node, node.body)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, *body: ast.AST) -> None:
        scope = self._within(node, "function")
        for one in parameters(node.args):
            scope.bind(one.arg, "parameter")
        # What `global` declares holds for the whole function, wherever it stands.
        self._visit_all(scope, *body)
        scope.bound = {name: kind for name, kind in scope.bound.items() if name not in scope.declared}

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._stack[-1].bind(node.name, "class")
        for child in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(child)
        self._visit_all(self._within(node, "class"), *node.body)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        scope = self._within(node, "comprehension")
        self.visit(node.generators[0].iter)
        self._stack.append(scope)
        for number, generator in enumerate(node.generators):
            self._bind_as("loop", generator.target)
            for child in (*([generator.iter] if number else []), *generator.ifs):
                self.visit(child)
        for child in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(child)
        self._stack.pop()

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension


def parameters(args: ast.arguments) -> list[ast.arg]:
    """Return all parameters, in the order in which they are written."""
    variadic = [args.vararg] if args.vararg else []
    keywords = [args.kwarg] if args.kwarg else []
    return [*args.posonlyargs, *args.args, *variadic, *args.kwonlyargs, *keywords]


def _evaluated_outside(args: ast.arguments) -> list[ast.expr]:
    defaults = [default for default in (*args.defaults, *args.kw_defaults) if default is not None]
    return [*defaults, *(one.annotation for one in parameters(args) if one.annotation is not None)]


def _kind_of_builtin(name: str) -> str:
    found = getattr(builtins, name)
    if isinstance(found, type):
        return "exception" if issubclass(found, BaseException) else "type"
    return "function" if callable(found) else "constant"
