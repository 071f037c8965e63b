"""Tables of Markdown: one line from its cells."""

from collections.abc import Sequence


def markdown_row(cells: Sequence[str]) -> str:
    r"""Return a line of a table.

    >>> markdown_row(["a|b", "two\nlines"])
    '| a\\|b | two lines |'
    """
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
