"""Tables and lists of files as all commands print them."""

from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightsae.analysis.labels.llm.session import Tally
from lightsae.formats.files import shown

# Columns of the output if no terminal is attached.
WIDTH = 100


def console(width: int = WIDTH) -> Console:
    """Return what prints to the terminal in its width, and elsewhere in a fixed one."""
    made = Console()
    if not made.is_terminal:
        made.width = width
    return made


def table(*headers: str, words: Collection[int] = (0,)) -> Table:
    """Return a table without lines.

    Args:
        headers: Of the columns.
        words: Columns of words, by their number; the others hold figures and are right-aligned.
    """
    made = Table(*headers, box=None, pad_edge=False)
    for number, column in enumerate(made.columns):
        column.justify = "left" if number in words else "right"
    return made


def print_paths(*rows: tuple[str, str | Path]) -> None:
    """Print where something lies, a line each; a path keeps its line however long, for it is there to be copied."""
    width = max(len(name) for name, _ in rows) + 2
    for name, path in rows:
        print(f"{name:<{width}}{shown(path) if isinstance(path, Path) else path}")


def print_tally(tally: Tally, stopped: str | None) -> None:
    """Print how many questions a language model was asked, what failed, and why it was stopped early if it was."""
    print(
        f"{tally.asked} questions asked, {tally.cached} answered before; "
        f"{tally.prompt_tokens:,} + {tally.completion_tokens:,} tokens"
    )
    for failure, times in tally.failures.most_common():
        print(f"{times} x {failure}")
    if stopped is not None:
        print(f"stopped early: {stopped} Start it again to go on: answered questions cost nothing.")
