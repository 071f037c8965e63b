"""Concepts that the lexical tokens of Python source give: keywords, names, literals, operators, brackets.

Axes: C characters.
"""

import keyword
import re
import token as kinds
from dataclasses import dataclass

from lightsae.analysis.concepts.python.source import Source, SourceToken
from lightsae.analysis.concepts.truth import Marks
from lightsae.analysis.labels.python_source import field_end

_KEYWORDS = {
    "flow": ("if", "elif", "else", "for", "while", "break", "continue", "pass", "return", "with", "yield", "await"),
    "constant": ("None", "True", "False"),
    "operator": ("and", "or", "not", "in", "is"),
    "definition": ("def", "class", "lambda", "async"),
    "import": ("import", "from", "as"),
    "exception": ("try", "except", "finally", "raise", "assert"),
    "binding": ("global", "nonlocal", "del"),
}
_GROUP = {word: group for group, words in _KEYWORDS.items() for word in words}
# Keywords that begin a statement or stand inside an expression.
_BOTH = frozenset({"if", "else", "for", "async", "yield"})
_HEADERS = frozenset(
    {"if", "elif", "else", "for", "while", "with", "try", "except", "finally", "def", "class", "async", "match", "case"}
)
_BINARY = {
    **{"+": "arithmetic.add", "-": "arithmetic.subtract", "*": "arithmetic.multiply", "/": "arithmetic.divide"},
    **{"//": "arithmetic.floor_divide", "%": "arithmetic.modulo", "**": "arithmetic.power", "@": "arithmetic.matmul"},
    **{"&": "bitwise.and", "|": "bitwise.or", "^": "bitwise.xor", "<<": "bitwise.left", ">>": "bitwise.right"},
    **{"==": "comparison.equal", "!=": "comparison.unequal", "<": "comparison.less", ">": "comparison.greater"},
    **{"<=": "comparison.at_most", ">=": "comparison.at_least"},
}
_UNARY = {
    **{"-": "unary.minus", "+": "unary.plus", "~": "unary.invert", "*": "unpacking.list", "**": "unpacking.mapping"},
    "@": "decorator",
}
_PLAIN = {"->": "arrow", ":=": "walrus", ".": "dot", ";": "semicolon", "...": "ellipsis"}
_CLOSES = {")": "(", "]": "[", "}": "{"}
_SHAPES = {"(": "round", "[": "square", "{": "curly"}
_LETTERS = re.compile(r"[rRbBuUfFtT]*")
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|N\{[^}]*\}|[0-7]{1,3}|(?s:.))")
_CONVERSION = re.compile(r"%(?:\(\w+\))?[-#0 +]*(?:\d+|\*)?(?:\.\d+)?[sdrxifgceoXEGu]")
_REPLACED = re.compile(r"(?<!\{)\{[\w.\[\]]*(?:![rsa])?(?::[^{}]*)?\}(?!\})")
_DEEPEST = 4
_NO_BRACKET = "no_bracket"


def mark_tokens(source: Source, marks: Marks) -> None:
    """Mark what follows from the lexical tokens alone."""
    before: SourceToken | None = None
    stack = [_Open(_NO_BRACKET, 0)]
    first = ""
    for number, token in enumerate(source.tokens):
        if token.kind == kinds.COMMENT:
            _comment(source, number, marks)
            continue
        if token.kind in (kinds.NL, kinds.NEWLINE):
            _newline(source, number, len(stack) > 1, marks)
            if token.kind == kinds.NEWLINE:
                before, first = None, ""
            continue
        first = first or token.text
        if token.kind == kinds.NAME:
            _name(token, before, marks)
        elif token.kind == kinds.NUMBER:
            _number(token, marks)
        elif token.kind == kinds.STRING:
            _string(source.text, token, before, marks)
        elif token.kind == kinds.OP:
            _operator(source, number, before, stack, first, marks)
        if token.text == "lambda":
            stack[-1].lambdas += 1
        before = token


@dataclass
class _Open:
    """An open bracket (or none): its role, where its inside begins, the lambdas in it whose colon has not come yet."""

    role: str
    end: int
    lambdas: int = 0


def _name(token: SourceToken, before: SourceToken | None, marks: Marks) -> None:
    word, start, end = token.text, token.start, token.end
    if keyword.iskeyword(word):
        name = f"keyword.{_GROUP[word]}.{word}"
        if word in _BOTH:
            name += ".statement" if before is None else ".expression"
        marks.add(name, start, end)
        return
    marks.add(f"identifier.{_style(word)}", start, end)


def _style(word: str) -> str:
    """Return how an identifier is written.

    >>> [_style(word) for word in ("__init__", "_x", "MAX_SIZE", "i", "HTTPServer", "snake_case", "word", "mixedCase")]
    ['dunder', 'private', 'upper_case', 'one_letter', 'capitalised', 'snake_case', 'lower_case', 'mixed_case']
    """
    if word.startswith("__") and word.endswith("__") and len(word) > 4:
        return "dunder"
    if word == "_":
        return "underscore"
    if word.startswith("_"):
        return "private"
    if len(word) == 1:
        return "one_letter"
    if word.isupper():
        return "upper_case"
    if word[0].isupper():
        return "capitalised"
    if "_" in word:
        return "snake_case"
    return "lower_case" if word.islower() else "mixed_case"


def _number(token: SourceToken, marks: Marks) -> None:
    text = token.text.lower().replace("_", "")
    bases = {"0x": "hexadecimal", "0o": "octal", "0b": "binary"}
    if text[:2] in bases:
        name = f"integer.{bases[text[:2]]}"
    elif text.endswith("j"):
        name = "imaginary"
    elif not text.isdigit():
        name = "float"
    else:
        value = int(text) if len(text) < 5 else 9999
        name = f"integer.decimal.{value if value < 3 else 'one_digit' if value < 10 else 'more_digits'}"
    marks.add(f"number.{name}", token.start, token.end)


def _string(text: str, token: SourceToken, before: SourceToken | None, marks: Marks) -> None:
    start, end = token.start, token.end
    prefix = _LETTERS.match(token.text)
    assert prefix is not None
    letters = "".join(sorted(prefix[0].lower()))
    body = token.text[prefix.end() :]
    quote = body[0] * 3 if body[:3] == body[0] * 3 and len(body) >= 6 else body[0]
    inside, outside = start + prefix.end() + len(quote), end - len(quote)
    content = text[inside:outside]
    marks.add("string", start, end)
    marks.add(f"string.prefix.{letters or 'none'}", start, end)
    marks.add(
        f"string.quotes.{'triple' if len(quote) == 3 else 'double' if quote == chr(34) else 'single'}", start, end
    )
    marks.add("string.opening", start, inside)
    marks.add("string.content", inside, outside)
    marks.add("string.closing", outside, end)
    if before is not None and before.kind == kinds.STRING:
        marks.add("string.concatenated", start, end)
    if "\n" in content:
        marks.add("string.multiline", start, end)
        marks.add("string.multiline.later_line", text.index("\n", inside) + 1, end)
    marks.add(f"string.holds.{_holds(content)}", start, end)
    if "r" not in letters:
        for found in _ESCAPE.finditer(content):
            what = {"n": "newline", "t": "tab", "\\": "backslash", '"': "quote", "'": "quote", "x": "hexadecimal"}
            name = what.get(found[0][1], "other")
            marks.add(f"string.escape.{name}", inside + found.start(), inside + found.end())
    if "f" in letters or "t" in letters:
        _fields(text, inside, outside, marks)
    else:
        for found in _CONVERSION.finditer(content):
            marks.add(f"string.conversion.{found[0][-1]}", inside + found.start(), inside + found.end())
        for found in _REPLACED.finditer(content):
            marks.add("string.replacement_field", inside + found.start(), inside + found.end())


def _holds(content: str) -> str:
    if not content.strip():
        return "nothing" if not content else "space"
    if len(content) == 1:
        return "one_sign"
    if content.isidentifier():
        return "one_word"
    return "words" if re.search(r"\w \w", content) else "signs" if not re.search(r"\w", content) else "other"


def _fields(text: str, inside: int, outside: int, marks: Marks) -> None:
    at = inside
    while (opened := text.find("{", at, outside)) >= 0:
        if text.startswith("{{", opened):
            at = opened + 2
            continue
        at = max(opened + 1, min(outside, field_end(text, opened + 1)))
        marks.add("string.f_field", opened, at)


def _comment(source: Source, number: int, marks: Marks) -> None:
    token = source.tokens[number]
    alone = number == 0 or source.tokens[number - 1].kind in (kinds.NL, kinds.NEWLINE)
    marks.add(f"comment.{'own_line' if alone else 'after_code'}", token.start, token.end)
    marks.add("comment.mark", token.start, token.start + len(token.text) - len(token.text.lstrip("#")))
    if alone and number > 1 and source.tokens[number - 2].kind == kinds.COMMENT:
        marks.add("comment.own_line.continued", token.start, token.end)


def _newline(source: Source, number: int, in_brackets: bool, marks: Marks) -> None:
    token = source.tokens[number]
    last = source.tokens[number - 1] if number else None
    if token.kind == kinds.NEWLINE:
        name = "statement"
    elif last is not None and last.kind == kinds.COMMENT:
        name = "comment"
    elif last is None or last.kind in (kinds.NL, kinds.NEWLINE):
        name = "blank_line"
    else:
        name = "in_brackets" if in_brackets else "other"
    marks.add(f"newline.{name}", token.start, max(token.end, token.start + 1))


def _operator(
    source: Source, number: int, before: SourceToken | None, stack: list["_Open"], first: str, marks: Marks
) -> None:
    token = source.tokens[number]
    sign, start, end = token.text, token.start, token.end
    if sign in _SHAPES:
        role = _opened(source, number, before, len(stack) == 1)
        marks.add(f"bracket.{role}.open", start, end)
        marks.add(f"bracket_side.open.{_SHAPES[sign]}", start, end)
        stack.append(_Open(role, end))
    elif sign in _CLOSES:
        opened = stack.pop()
        marks.add(f"bracket.{opened.role}.close", start, end)
        marks.add(f"bracket_side.close.{_SHAPES[_CLOSES[sign]]}", start, end)
        levels = [f"at_least_{depth}" for depth in range(1, min(_DEEPEST, len(stack)) + 1)]
        marks.add(".".join(["in_brackets", *levels[1:]]), opened.end, start)
        if opened.end == start:
            marks.add(f"bracket.{opened.role}.close.empty", start, end)
    elif sign == ",":
        marks.add(f"comma.{stack[-1].role}", start, end)
    elif sign == ":":
        marks.add(f"colon.{_colon(stack[-1], first)}", start, end)
    elif sign == "=":
        marks.add(f"equals.{_equals(stack[-1])}", start, end)
    elif sign.endswith("=") and sign[:-1] in _BINARY and sign not in _BINARY:
        marks.add(f"operator.augmented.{_BINARY[sign[:-1]].partition('.')[2]}", start, end)
    elif sign in _PLAIN:
        marks.add(_PLAIN[sign], start, end)
    elif sign in _BINARY and _is_operand(before):
        marks.add(f"operator.{_BINARY[sign]}", start, end)
    elif sign in _UNARY:
        marks.add(f"operator.{_UNARY[sign]}", start, end)


def _opened(source: Source, number: int, before: SourceToken | None, on_the_line: bool) -> str:
    sign = source.tokens[number].text
    if sign == "{":
        return "curly"
    if not _is_operand(before):
        return "group" if sign == "(" else "list"
    if sign == "[":
        return "subscript"
    introduced = source.tokens[number - 2].text if number > 1 and on_the_line else ""
    return {"def": "parameters", "class": "bases"}.get(introduced, "call")


def _is_operand(before: SourceToken | None) -> bool:
    """Whether an expression can end with a token, so that what follows is a binary operator, a call or a subscript."""
    if before is None:
        return False
    if before.kind == kinds.NAME:
        return not keyword.iskeyword(before.text) or before.text in ("True", "False", "None")
    return before.kind in (kinds.NUMBER, kinds.STRING) or before.text in (")", "]", "}", "...")


def _colon(around: _Open, first: str) -> str:
    if around.lambdas:
        around.lambdas -= 1
        return "lambda"
    if around.role == _NO_BRACKET:
        return "block" if first in _HEADERS else "annotation"
    return {"subscript": "slice", "curly": "mapping", "parameters": "annotation"}.get(around.role, "other")


def _equals(around: _Open) -> str:
    if around.lambdas or around.role == "parameters":
        return "default"
    return "assignment" if around.role == _NO_BRACKET else "keyword_argument"
