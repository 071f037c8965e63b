"""A rule in words: «`self` after `(`; `return`; a number inside a string»."""

from collections.abc import Sequence

from lightsae.analysis.labels.patterns import CLASSES, STATES, Pattern

# Phrases, and tokens in one phrase, that are written out; the rest is counted, and stands in full in the rule.
PHRASES, TOKENS = 4, 5


def in_words(patterns: Sequence[Pattern], texts: Sequence[str]) -> str:
    """Return a rule in words, the most telling patterns first; an empty string for no patterns.

    Args:
        patterns: Of the rule, in its order.
        texts: What each token says.
    """
    groups: dict[tuple[str, object], list[str]] = {}
    for pattern in patterns:
        shape, item = _shape(pattern, texts)
        items = groups.setdefault((shape, pattern.kind), [])
        if item not in items:
            items.append(item)
    phrases = [shape.format(_listed(items)) for (shape, _), items in groups.items()]
    left = sum(len(items) for items in list(groups.values())[PHRASES:])
    return "; ".join([*phrases[:PHRASES], *([f"and {left} more"] if left else [])])


def _shape(pattern: Pattern, texts: Sequence[str]) -> tuple[str, str]:
    """Return a phrase with a gap, and what goes into the gap: patterns of one phrase are told together."""
    token = quoted(texts[pattern.token]) if pattern.token >= 0 else _class(pattern.token_class)
    if pattern.kind == "token":
        return "{}", token
    if pattern.kind == "before":
        return "{} before " + _escaped(_token(pattern.after, texts, "the row's end")), token
    if pattern.kind == "two_before":
        return "{} two tokens after " + _escaped(_token(pattern.before[0], texts)), token
    if pattern.kind == "after_two":
        joined = "".join(texts[t] if t < len(texts) else "" for t in pattern.before)
        return "{} after " + _escaped(quoted(joined)), token
    if pattern.kind == "after_class":
        return "{} after " + _class(pattern.before_class), token
    if pattern.kind in ("in_state", "class_in_state"):
        return "{} " + STATES[pattern.state], token
    return _escaped(token) + " after {}", _token(pattern.before[0], texts)


def quoted(text: str) -> str:
    """Return a piece of text as it is quoted: in backticks, with newlines and indentation named.

    >>> quoted(" return"), quoted("  "), quoted(chr(10) + "    ")
    ('`return`', '2 spaces', 'a newline and 4 spaces')
    """
    if not text.strip():
        if "\n" not in text:
            return f"{len(text)} spaces" if len(text) > 1 else "a space"
        indent = len(text.rsplit("\n", 1)[1].expandtabs(4))
        lines = "a newline" if text.count("\n") == 1 else f"{text.count(chr(10))} newlines"
        return f"{lines} and {indent} spaces" if indent else lines
    return "`" + text.strip(" ").replace("\r", "").replace("\n", "⏎").replace("\t", "⇥") + "`"


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` letters, the last of which tells that there was more.

    >>> shortened("a newline", 5), shortened("a newline", 9)
    ('a ne…', 'a newline')
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def _token(token: int, texts: Sequence[str], beyond: str = "the row's start") -> str:
    return quoted(texts[token]) if token < len(texts) else beyond


def _class(number: int) -> str:
    return CLASSES[number] if number < len(CLASSES) else "the row's start"


def _listed(items: Sequence[str]) -> str:
    shown_items = list(items[:TOKENS])
    left = len(items) - len(shown_items)
    return ", ".join(shown_items) + (f" and {left} more" if left else "")


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
