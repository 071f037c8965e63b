"""Pages of documentation taken apart: fenced blocks, and the commands in those of a shell."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
_FENCE = re.compile(r"^(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: `bash`, `python`, `yaml`, `diff` or `text`.
        title: The file that it is, where it has one.
        text: What it holds.
        line: Where it begins in the page.
        not_run: Why it is not run, as the comment before it says.
    """

    language: str
    title: str
    text: str
    line: int
    not_run: str


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in _FENCE.finditer(text):
        language, _, rest = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]*)"', rest)
        line = text.count("\n", 0, match.start("text")) + 1
        blocks.append(Block(language, title[1] if title else "", match["text"], line, match["why"] or ""))
    return blocks


def commands_of(text: str) -> list[list[str]]:
    """Return the words of each command of a shell block, without comments and settings of the environment.

    >>> commands_of("lightsae fit --a 1 \\\\\\n    --b 'x y'   # a comment\\nPYTHONPATH=. lightsae sites gpt2")
    [['lightsae', 'fit', '--a', '1', '--b', 'x y'], ['lightsae', 'sites', 'gpt2']]
    """
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [words[next(i for i, word in enumerate(words) if "=" not in word) :] for words in lines if words]
