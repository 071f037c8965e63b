"""A rule in words: «`self` after `(`; `return`; a number inside a docstring». The words of a label say all of it."""

from collections import Counter
from collections.abc import Sequence

from lightsae.analysis.labels.patterns import ASPECTS, CLASSES, STATES, Pattern
from lightsae.errors import listed

# Phrases, and tokens in one phrase, that are written out of a detector; the rest is counted, and stands in the rule.
PHRASES, TOKENS = 4, 5


def names_of(texts: Sequence[str]) -> list[str]:
    """Return a name for each token, all different: what it says, and its number where others say the same.

    >>> names_of([" a", "a", chr(0xFFFD), chr(0xFFFD)])
    ['` a`', '`a`', '`\ufffd` (token 2)', '`\ufffd` (token 3)']
    """
    names = [quoted(text) for text in texts]
    often = Counter(names)
    return [f"{name} (token {token})" if often[name] > 1 else name for token, name in enumerate(names)]


def in_words(patterns: Sequence[Pattern], names: Sequence[str]) -> str:
    """Return a rule in words, all of it; an empty string for no patterns.

    Args:
        patterns: Of the rule, in its order.
        names: Of each token, see `names_of`.
    """
    return "; ".join(shape.format(", ".join(items)) for shape, items in _phrases(patterns, names))


def in_short(patterns: Sequence[Pattern], names: Sequence[str]) -> str:
    """Return the most telling patterns of a long rule in words, and how many more there are."""
    phrases = _phrases(patterns, names)
    written = [shape.format(listed(items, TOKENS)) for shape, items in phrases[:PHRASES]]
    left = sum(len(items) for _, items in phrases[PHRASES:])
    return "; ".join([*written, *([f"and {left} more"] if left else [])])


def _phrases(patterns: Sequence[Pattern], names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return phrases with a gap, and what goes into each: patterns that differ in their token alone share one."""
    groups: dict[tuple[str, str], list[str]] = {}
    for pattern in patterns:
        groups.setdefault((pattern.kind, _shape(pattern, names)), []).append(_item(pattern, names))
    return [(shape, items) for (_, shape), items in groups.items()]


def _item(pattern: Pattern, names: Sequence[str]) -> str:
    if pattern.token >= 0:
        return names[pattern.token]
    return _class(pattern.token_class) if pattern.token_class >= 0 else "anything"


def _shape(pattern: Pattern, names: Sequence[str]) -> str:
    if pattern.kind == "before":
        where = "before " + _token(pattern.after, names, "the row's end")
    elif pattern.kind == "two_before":
        where = "two tokens after " + _token(pattern.before[0], names)
    elif pattern.kind == "after_class":
        where = "after " + _class(pattern.before_class)
    elif pattern.aspect:
        where = ASPECTS[pattern.aspect][pattern.value]
    elif pattern.state >= 0:
        where = STATES[pattern.state]
    elif pattern.before:
        where = "after " + " then ".join(_token(token, names) for token in pattern.before)
    else:
        where = ""
    return f"{{}} {_escaped(where)}" if where else "{}"


def quoted(text: str) -> str:
    """Return a piece of text as it is quoted: in backticks, with newlines and indentation named.

    >>> quoted(" return"), quoted("  "), quoted(chr(10) + "    ")
    ('` return`', '2 spaces', 'a newline and 4 spaces')
    """
    if not text:
        return "an empty token"
    if not text.strip(" "):
        return f"{len(text)} spaces" if len(text) > 1 else "a space"
    indent = text.lstrip("\n")
    if not indent.strip(" "):
        lines = len(text) - len(indent)
        newlines = "a newline" if lines == 1 else f"{lines} newlines"
        return newlines + (f" and {quoted(indent)}" if indent else "")
    return "`" + text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥") + "`"


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` letters, the last of which tells that there was more.

    >>> shortened("a newline", 5), shortened("a newline", 9)
    ('a ne…', 'a newline')
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def _token(token: int, names: Sequence[str], beyond: str = "the row's start") -> str:
    return names[token] if token < len(names) else beyond


def _class(number: int) -> str:
    return CLASSES[number] if number < len(CLASSES) else "the row's start"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
