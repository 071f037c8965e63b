"""Concepts of the lines of Python source: indentation, what begins and what ends a line, lines that go on.

Axes: C characters.
"""

import token as kinds
from collections.abc import Sequence

from lightsae.analysis.concepts.python.source import Source, SourceToken
from lightsae.analysis.concepts.truth import Marks

_DEEPEST = 6


def mark_lines(source: Source, marks: Marks) -> None:
    """Mark every line; a newline belongs to the line that it ends."""
    for row in source.lines:
        _mark_row(source, row, marks)
    levels, begin = [0], None
    comments: list[SourceToken] = []
    for token in source.tokens:
        if token.kind == kinds.COMMENT and begin is None:
            comments.append(token)
        elif token.kind == kinds.NEWLINE and begin is not None:
            before = list(levels)
            _mark_statement(source, begin, token.start, levels, marks)
            _mark_comments(source, comments, (before, levels), marks)
            begin = None
        elif begin is None and token.kind not in (kinds.NL, kinds.COMMENT, kinds.NEWLINE):
            begin = token
    _mark_comments(source, comments, (levels,), marks)


def _mark_row(source: Source, row: int, marks: Marks) -> None:
    stop = _stop(source, row)
    line = source.text[row:stop]
    signs = line.strip()
    if not signs:
        marks.add("line.blank", row, stop + 1)
        return
    lead = row + len(line) - len(line.lstrip())
    marks.add("line.indentation", row, lead)
    marks.add("line.first", lead, lead + 1)
    marks.add("line.last", lead + len(signs) - 1, lead + len(signs))


def _mark_statement(source: Source, first: SourceToken, end: int, levels: list[int], marks: Marks) -> None:
    """Mark the lines from the first token of a logical line to its end."""
    row = source.text.rfind("\n", 0, first.start) + 1
    column = len(source.text[row : first.start].expandtabs(8))
    kind = "level"
    while levels[-1] > column:
        levels.pop()
        kind = "dedented"
    if levels[-1] < column:
        levels.append(column)
        kind = "indented"
    marks.add(f"statement_start.{kind}", first.start, first.end)
    _mark_depth(len(levels) - 1, row, end + 1, marks)
    following = source.text.find("\n", row, end) + 1
    while following:
        marks.add("line.continued", following, _stop(source, following) + 1)
        following = source.text.find("\n", following, end) + 1


def _mark_comments(source: Source, comments: list[SourceToken], around: Sequence[Sequence[int]], marks: Marks) -> None:
    """Mark lines that are comments: as deep as the blocks before or behind them that are no deeper than they are."""
    for comment in comments:
        row = source.text.rfind("\n", 0, comment.start) + 1
        column = len(source.text[row : comment.start].expandtabs(8))
        depth = max(sum(level <= column for level in levels) for levels in around) - 1
        _mark_depth(depth, row, comment.end + 1, marks)
    comments.clear()


def _mark_depth(depth: int, start: int, end: int, marks: Marks) -> None:
    if depth:
        deeper = [f"at_least_{level}" for level in range(2, min(depth, _DEEPEST) + 1)]
        marks.add(".".join(["indented", *deeper]), start, end)


def _stop(source: Source, row: int) -> int:
    stop = source.text.find("\n", row, source.end)
    return source.end if stop < 0 else stop
