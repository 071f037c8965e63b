"""A piece of Python source that parses, with its lexical tokens, in characters.

Axes: C characters.

What `tokenize` makes of an f-string goes with the version of Python: here it is one string everywhere.
"""

import ast
import io
import re
import token as kinds
import tokenize
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# A document that the text cuts off is read up to one of so many last lines.
_MOST_LINES = 400
_OPENS = {getattr(kinds, name) for name in ("FSTRING_START", "TSTRING_START") if hasattr(kinds, name)}
_CLOSES = {getattr(kinds, name) for name in ("FSTRING_END", "TSTRING_END") if hasattr(kinds, name)}
_SILENT = {kinds.INDENT, kinds.DEDENT, kinds.ENDMARKER, kinds.ENCODING}
_NO_SIGNS = {kinds.COMMENT, kinds.NL, kinds.NEWLINE}
# What a parser raises on text that it does not take; deep nesting ends in the last two.
_REFUSALS = (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError)


class SourceToken(NamedTuple):
    """A lexical token: its kind (a number of the module `token`), its text, and where it lies."""

    kind: int
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Source:
    """Source that parses.

    Attributes:
        text: All that was given; what parses may be its beginning.
        tree: The module.
        tokens: Lexical tokens in order, comments and newlines among them.
        end: Where the part that parses ends.
    """

    text: str
    tree: ast.Module
    tokens: list[SourceToken]
    end: int

    @cached_property
    def lines(self) -> list[int]:
        """Where each line begins."""
        return [0, *(found.end() for found in re.finditer("\n", self.text[: self.end]))]

    def place(self, line: int, column: int) -> int:
        """Return the character at a line, from 1, and a column in bytes of UTF-8, from 0: as `ast` gives them."""
        start = self.lines[line - 1]
        if self._is_plain:
            return start + column
        end = self.lines[line] if line < len(self.lines) else self.end
        return start + len(self.text[start:end].encode()[:column].decode())

    @cached_property
    def _is_plain(self) -> bool:
        return self.text.isascii()

    @cached_property
    def signs(self) -> list[SourceToken]:
        """Its tokens without comments and newlines."""
        return [token for token in self.tokens if token.kind not in _NO_SIGNS]

    @cached_property
    def _starts(self) -> list[int]:
        return [token.start for token in self.signs]

    def number_at(self, place: int) -> int:
        """Return the number of the first of the signs that begins at a character or after it."""
        return bisect_left(self._starts, place)

    def number_before(self, place: int) -> int:
        """Return the number of the last of the signs that begins before a character."""
        return bisect_right(self._starts, place - 1) - 1


def parse(text: str) -> Source | None:
    """Return a module that parses: the text, or as much of it as a cut leaves whole; None if it is no Python."""
    if "\r" in text.replace("\r\n", "") or "\0" in text:
        return None
    for end in _ends(text):
        part = text[:end]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(part)
            return Source(text, tree, _tokens(part), end) if tree.body else None
        except _REFUSALS:
            continue
    return None


def _ends(text: str) -> Iterator[int]:
    """Yield where a text may be cut: nowhere, then where its last lines begin, soon further and further back."""
    yield len(text)
    end, back = len(text), 0
    while end > 0 and back < _MOST_LINES:
        for _ in range(max(1, back // 4)):
            end = text.rfind("\n", 0, max(0, end - 1)) + 1
            back += 1
        if text[:end].strip():
            yield end


def _tokens(text: str) -> list[SourceToken]:
    starts = [0, *(found.end() for found in re.finditer("\n", text)), len(text)]
    tokens: list[SourceToken] = []
    depth, opened = 0, 0
    for token in tokenize.generate_tokens(io.StringIO(text, newline="\n").readline):
        start, end = (starts[min(row, len(starts)) - 1] + column for row, column in (token.start, token.end))
        if token.type in _OPENS:
            depth, opened = depth + 1, start if not depth else opened
        elif token.type in _CLOSES:
            depth -= 1
            if not depth:
                tokens.append(SourceToken(kinds.STRING, text[opened:end], opened, end))
        elif not depth and token.type not in _SILENT:
            tokens.append(SourceToken(token.type, text[start:end], start, min(end, len(text))))
    return tokens
