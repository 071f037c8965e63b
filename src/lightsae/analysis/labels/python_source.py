"""Reads Python source that may be cut anywhere: what each character belongs to.

Axes: C characters of a piece of source.

The standard library's `tokenize` and `ast` refuse a piece that begins inside a string or ends inside a bracket, and
what they make of an f-string goes with the version of Python; a rule has to mean the same wherever it is read. This
scanner takes any text; on whole modules it agrees with both, which a test checks.
"""

import itertools
import keyword
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# By aspect, what each of its numbers stands for, as a label says it; 0: none of these, or nothing is known.
ASPECTS: dict[str, tuple[str, ...]] = {
    "region": ("", "in code", "inside a docstring", "inside a comment", "inside a string that is no docstring"),
    "role": (
        "",
        "on an import line",
        "on a decorator line",
        "in the name that `def` binds",
        "in the name that `class` binds",
        "in the target of an assignment",
        "in the name of a parameter",
        "in a default value",
        "in an annotation",
        "in an argument of a call",
        "in the keyword of an argument",
        "inside a subscript",
    ),
    "depth": ("", "without indentation", *(f"at depth {n} of indentation" for n in ("1", "2", "3", "4 or more"))),
    "line": ("", "at a line's start", "where the indentation grows", "at a dedent"),
}
NOTHING, CODE, DOCSTRING, COMMENT, STRING = range(5)
(_, IMPORT, DECORATOR, DEF, CLASS, TARGET, PARAMETER, DEFAULT, ANNOTATION, ARGUMENT, KEYWORD, SUBSCRIPT) = range(12)
LEVEL, INDENT, DEDENT = 1, 2, 3
_DEEPEST = 5

Aspects = dict[str, NDArray[np.uint8]]
_SIGNS = re.compile(
    r"""(?P<comment>\#[^\n]*)|(?P<string>[rRbBuUfFtT]{0,2}(?:\"{3}|'{3}|"|'))|(?P<name>[^\W\d]\w*)|(?P<number>\d[\w.]*)
    |(?P<newline>\n)|(?P<joined>\\\n)|(?P<sign>->|:=|[=!<>]=|(?:\*\*|//|<<|>>|[-+*/%&|^@])=?|[^\s])""",
    re.VERBOSE,
)
_ASSIGNS = re.compile(r"(?:\*\*|//|<<|>>|[-+*/%&|^@])?=")
_KEYWORDS = frozenset(keyword.kwlist)
# A bracket that was never closed (the piece is damaged) ends where one of these begins a line.
_STATEMENTS = frozenset({"def", "class", "return", "import", "raise", "while", "with", "try", "@"})
# Share of the signs that are names after names: valid source hardly has any, prose has more than half.
_MOST_ADJACENT = 0.04
_SEPARATORS = frozenset({",", ":", "=", "->"})
_LONG_QUOTES = ('"' * 3, "'" * 3)


def read_source(text: str) -> Aspects | None:
    """Return the aspects of each character, (C + 1,) each (the end counts as one); None if it is no Python.

    A piece may begin inside a long string: it is taken to if it reads as Python then, and not otherwise.
    """
    readings = (_Reading(text, quote) for quote in ("", *(quote for quote in _LONG_QUOTES if quote in text)))
    return next((reading.aspects for reading in readings if reading.adjacent <= _MOST_ADJACENT), None)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


class _Reading:
    """One reading of a piece; `inside` is the quote of the long string that it begins in."""

    def __init__(self, text: str, inside: str) -> None:
        self.text = text
        self.aspects = {name: np.zeros(len(text) + 1, np.uint8) for name in ASPECTS}
        self.indents: list[int] = []
        # Whether the next line may be a docstring: the first of a piece, or of the block of `def` or `class`.
        self.may_document = not inside
        start = _string_end(text, 0, inside) if inside else 0
        self.aspects["region"][:start] = DOCSTRING
        names = signs = 0
        for line in _logical_lines(text, start):
            words = [token.kind == "name" and token.text not in _KEYWORDS for token in line]
            names += sum(a and b for a, b in itertools.pairwise(words))
            signs += len(line)
            self._read_line(line)
        self.adjacent = names / max(20, signs)

    def _read_line(self, tokens: Sequence[_Token]) -> None:
        region, role = self.aspects["region"], self.aspects["role"]
        for token in tokens:
            region[token.start : token.end] = {"comment": COMMENT, "string": STRING}.get(token.kind, CODE)
        line = [token for token in tokens if token.kind not in ("comment", "newline", "joined")]
        if not line:
            return
        start, end = line[0].start, tokens[-1].end
        change = self._indent(start)
        self.aspects["line"][start : line[0].end] = change
        self.aspects["depth"][start:end] = min(len(self.indents), _DEEPEST)
        first = next((token.text for token in line if token.text != "async"), "")
        if self.may_document and line[0].kind == "string" and all(token.kind == "string" for token in line):
            region[start : line[-1].end] = DOCSTRING
        self.may_document = first in ("def", "class") and line[-1].text == ":"
        if first in ("import", "from") or line[0].text == "@":
            role[start:end] = DECORATOR if line[0].text == "@" else IMPORT
            return
        for token, number in zip(line, _roles(line, first), strict=True):
            role[token.start : token.end] = number
        # What stands between two tokens of one role has it too: the line ends inside a bracket.
        for one, other in itertools.pairwise(line):
            if role[one.start] == role[other.start]:
                role[one.end : other.start] = role[one.start]

    def _indent(self, start: int) -> int:
        """Take a line's indentation; return how it compares with that of the line before."""
        before = self.text[self.text.rfind("\n", 0, start) + 1 : start]
        column = len(before.expandtabs(8))
        if not self.indents:
            # A piece that begins inside a block: its outer blocks are taken to be 4 spaces each.
            self.indents = [*range(0, column, 4), column]
            return LEVEL
        if column > self.indents[-1]:
            self.indents.append(column)
            return INDENT
        if column == self.indents[-1]:
            return LEVEL
        while len(self.indents) > 1 and self.indents[-1] > column:
            self.indents.pop()
        return DEDENT


def _logical_lines(text: str, start: int) -> Iterator[list[_Token]]:
    """Yield the tokens of each logical line, its newline among them; comments and blank lines join the next one."""
    line: list[_Token] = []
    depth, starts_row, is_blank = 0, True, True
    for token in _tokens(text, start):
        if token.kind == "sign":
            depth = max(0, depth + (token.text in "([{") - (token.text in ")]}"))
        if depth and starts_row and token.text in _STATEMENTS and not is_blank:
            yield line
            line, depth, is_blank = [], 0, True
        line.append(token)
        starts_row = token.kind == "newline"
        is_blank = is_blank and token.kind in ("comment", "newline")
        if starts_row and not depth and not is_blank:
            yield line
            line, is_blank = [], True
    yield line


def _tokens(text: str, at: int) -> Iterator[_Token]:
    while match := _SIGNS.search(text, at):
        kind, at = str(match.lastgroup), match.end()
        if kind == "string":
            opening = match[0].lstrip("rRbBuUfFtT")
            at = _string_end(text, at, opening, formatted=bool(set("fFtT") & set(match[0])))
        yield _Token(kind, text[match.start() : at], match.start(), at)


def _string_end(text: str, at: int, quote: str, formatted: bool = False) -> int:
    """Return where a string ends whose text begins at `at`: after its quote, at the line's end, or with the piece."""
    signs = re.compile(r"\\(?s:.)|\{\{|\{|" + quote + ("" if len(quote) == 3 else r"|\n"))
    while match := signs.search(text, at):
        at = match.end()
        if match[0] == quote:
            return at
        if match[0] == "\n":
            return match.start()
        if match[0] == "{" and formatted:
            at = field_end(text, at)
    return len(text)


def field_end(text: str, start: int) -> int:
    """Return where a field of an f-string ends; inside, strings may have the quotes of the string around them."""
    depth = 1
    for token in _tokens(text, start):
        if token.kind == "newline" and depth == 1 and text[start : token.start].strip() == "":
            break
        depth += (token.text == "{") - (token.text == "}")
        if not depth:
            return token.end
    return start


@dataclass
class _Bracket:
    """An open bracket, and the role of what stands in it now."""

    role: int
    parameters: bool = False


def _roles(line: Sequence[_Token], first: str) -> list[int]:
    """Return the role of each token of a logical line."""
    roles: list[int] = []
    stack = [_Bracket(NOTHING)]
    last_assign = -1
    for place, token in enumerate(line):
        top, sign = stack[-1], token.kind == "sign"
        before = line[place - 1] if place else None
        after = line[place + 1].text if place + 1 < len(line) else ""
        if sign and token.text in ")]}" and len(stack) > 1:
            stack.pop()
            top = stack[-1]
        elif sign and top.parameters:
            top.role = {",": PARAMETER, ":": ANNOTATION, "=": DEFAULT}.get(token.text, top.role)
            if token.text == ":" and roles[-1] == DEFAULT:
                top.role = DEFAULT  # of a lambda
        elif sign and len(stack) == 1:
            if token.text == "->":
                top.role = ANNOTATION
            elif token.text == ":" and first not in _KEYWORDS and top.role == NOTHING:
                last_assign, top.role = max(last_assign, place), ANNOTATION
            elif token.text == ":":
                top.role = NOTHING
            elif _ASSIGNS.fullmatch(token.text) and first not in _KEYWORDS:
                last_assign = place if top.role == NOTHING else last_assign
                top.role = NOTHING
        ends = sign and token.text in _SEPARATORS and top.role != ARGUMENT
        number = NOTHING if ends and not (token.text == ":" and top.role == DEFAULT) else top.role
        if token.kind == "name" and before is not None and before.text in ("def", "class") and len(stack) == 1:
            number = DEF if before.text == "def" else CLASS
        elif token.kind == "name" and after == "=" and top.role == ARGUMENT and _opens_argument(before):
            number = KEYWORD
        roles.append(number)
        if sign and token.text in "([{":
            stack.append(_opened(token, before, top, is_definition=first == "def" and len(stack) == 1))
    for place in range(last_assign):
        if roles[place] == NOTHING and line[place].kind == "name":
            roles[place] = TARGET
    return roles


def _opens_argument(before: _Token | None) -> bool:
    return before is not None and before.text in ("(", ",")


def _opened(token: _Token, before: _Token | None, top: _Bracket, is_definition: bool) -> _Bracket:
    """Return what a bracket opens: parameters, a call, a subscript, or a group, which is part of what is around it."""
    follows = before is not None and (
        before.text in (")", "]") or before.kind == "string" or (before.kind == "name" and before.text not in _KEYWORDS)
    )
    if token.text == "(" and follows:
        return _Bracket(PARAMETER, parameters=True) if is_definition and top.role == NOTHING else _Bracket(ARGUMENT)
    return _Bracket(SUBSCRIPT if token.text == "[" and follows else top.role)
