"""Patterns of text that can be tested at a token: what the offline labels are made of.

Axes: T tokens of a text, V vocabulary.

A kind of pattern gives every token one key (say, the pair of the token before and the token itself); a pattern is a
kind with one key. Nearly all look at the token and at what stands before it, which is what a causal model can know.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]

CLASSES = (
    "a space",
    "a newline",
    "a number",
    "a word",
    "the rest of a word",
    "a capitalised word",
    "an upper-case word",
    "an identifier",
    "punctuation",
    "another sign",
)
STATES = ("outside strings and comments", "inside a string", "inside a comment", "inside a long string")
# Of what the key of each kind is made up, the most significant first.
_PARTS = {
    "token": ("token",),
    "after": ("previous", "token"),
    "after_two": ("second", "previous", "token"),
    "two_before": ("second", "token"),
    "class_after": ("previous", "token_class"),
    "after_class": ("before_class", "token"),
    "in_state": ("state", "token"),
    "class_in_state": ("state", "token_class"),
    "before": ("token", "after"),
}
KINDS = tuple(_PARTS)
_N_CLASSES = len(CLASSES) + 1
_NOTHING = len(CLASSES)  # before the start of the row


@dataclass(frozen=True)
class Pattern:
    """One kind with one key.

    Attributes:
        kind: One of KINDS.
        token: The token itself; -1 if its class stands for it.
        token_class: Index of CLASSES; -1 if the token is given.
        before: The tokens before it that are given, in reading order; a single one stands two before in `two_before`.
        before_class: Class of the token before; -1 if it is not given.
        state: Index of STATES; -1 if it is not given.
        after: The token after it; -1 if it is not given.
    """

    kind: str
    token: int = -1
    token_class: int = -1
    before: tuple[int, ...] = ()
    before_class: int = -1
    state: int = -1
    after: int = -1


class PatternKeys:
    """The keys of every kind, for the tokens of a text.

    Args:
        tokens: (rows, S) token ids; nothing is known of what stands before a row.
        texts: (V,) what each token says.
    """

    def __init__(self, tokens: NDArray[np.int32], texts: Sequence[str]) -> None:
        self.vocabulary = len(texts)
        current = tokens.astype(np.int64)
        classes = np.array([class_of(text) for text in texts] + [_NOTHING])
        previous, second, following = (shifted(current, by, self.vocabulary) for by in (1, 2, -1))
        parts = {
            "token": current,
            "previous": previous,
            "second": second,
            "after": following,
            "token_class": classes[current],
            "before_class": classes[previous],
            "state": states_of(tokens, texts),
        }
        self.keys: dict[str, Keys] = {}
        for kind, names in _PARTS.items():
            key = parts[names[0]]
            for name in names[1:]:
                key = key * self._base(name) + parts[name]
            self.keys[kind] = key.ravel()

    def pattern(self, kind: str, key: int) -> Pattern:
        """Return the pattern that a key stands for."""
        first, *others = _PARTS[kind]
        values = {}
        for name in reversed(others):
            key, values[name] = divmod(key, self._base(name))
        values[first] = key
        before = tuple(values.pop(name) for name in ("second", "previous") if name in values)
        return Pattern(kind, before=before, **values)

    def _base(self, part: str) -> int:
        """Return how many values a part of a key may have; beyond the row's ends a token is `vocabulary`."""
        return _N_CLASSES if part == "token_class" else self.vocabulary + 1


def shifted(tokens: Keys, by: int, nothing: int) -> Keys:
    """Return, at each token, the one `by` places before it in its row (after it, where negative)."""
    moved = np.full_like(tokens, nothing)
    if by > 0:
        moved[:, by:] = tokens[:, :-by]
    else:
        moved[:, :by] = tokens[:, -by:]
    return moved


def class_of(text: str) -> int:
    """Return the index of a token's class in CLASSES."""
    bare = text.strip(" ")
    if not text.strip():
        return 1 if "\n" in text else 0
    if bare.isdigit():
        return 2
    if re.fullmatch(r"[a-z]+", bare):
        return 3 if text.startswith(" ") else 4
    if re.fullmatch(r"[A-Z][a-z]+", bare):
        return 5
    if re.fullmatch(r"[A-Z]+", bare):
        return 6
    if re.fullmatch(r"\w+", bare):
        return 7
    return 8 if all(ord(sign) < 128 for sign in bare) else 9


_QUOTES = re.compile(r'"""|\'\'\'|"|\'|#|\n')


def states_of(tokens: NDArray[np.int32], texts: Sequence[str]) -> Keys:
    """Return in which of STATES each token begins, as a reader of source code would see it from the row's start.

    In prose the marks are apostrophes as well, and the states say little; then no rule will use them.
    """
    signs = [_QUOTES.findall(text) for text in texts]
    states = np.zeros(tokens.shape, np.int64)
    has_signs = np.array([bool(marks) for marks in signs])
    for row, (ids, marked) in enumerate(zip(tokens.tolist(), has_signs[tokens], strict=True)):
        opened, begin, state = "", 0, 0
        for column in np.flatnonzero(marked).tolist():
            states[row, begin : column + 1] = state
            for sign in signs[ids[column]]:
                opened = _next_state(opened, sign)
            state, begin = _STATE_OF[opened], column + 1
        states[row, begin:] = state
    return states


_STATE_OF = {"": 0, '"': 1, "'": 1, "#": 2, '"""': 3, "'''": 3}


def _next_state(opened: str, sign: str) -> str:
    if sign == "\n":
        return opened if len(opened) == 3 else ""
    if not opened:
        return sign
    return "" if sign == opened else opened
