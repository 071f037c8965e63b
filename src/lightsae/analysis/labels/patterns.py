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
KINDS = (
    "token",
    "after",
    "after_two",
    "two_before",
    "class_after",
    "after_class",
    "in_state",
    "class_in_state",
    "before",
)
_N_CLASSES, _N_STATES = len(CLASSES) + 1, len(STATES)
_NOTHING = len(CLASSES)  # before the start of the row


@dataclass(frozen=True)
class Pattern:
    """One kind with one key.

    Attributes:
        kind: One of KINDS.
        token: The token itself; -1 where its class stands for it.
        token_class: Index of CLASSES; -1 where the token is given.
        before: The tokens before it that are given, in reading order; a single one stands two before in `two_before`.
        before_class: Class of the token before; -1 where it is not given.
        state: Index of STATES; -1 where it is not given.
        after: The token after it; -1 where it is not given.
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
        w = self.vocabulary + 1
        current = tokens.astype(np.int64)
        classes = np.array([class_of(text) for text in texts] + [_NOTHING])
        previous, second, following = (shifted(current, by, self.vocabulary) for by in (1, 2, -1))
        states = states_of(tokens, texts)
        # In the order of KINDS.
        keys = (
            current,
            previous * w + current,
            (second * w + previous) * w + current,
            second * w + current,
            previous * _N_CLASSES + classes[current],
            classes[previous] * w + current,
            states * w + current,
            states * _N_CLASSES + classes[current],
            current * w + following,
        )
        self.keys: dict[str, Keys] = {kind: key.ravel() for kind, key in zip(KINDS, keys, strict=True)}

    def pattern(self, kind: str, key: int) -> Pattern:
        """Return the pattern that a key stands for."""
        w = self.vocabulary + 1
        high, low = divmod(key, w)
        if kind == "token":
            return Pattern(kind, token=key)
        if kind == "after":
            return Pattern(kind, token=low, before=(high,))
        if kind == "after_two":
            return Pattern(kind, token=low, before=divmod(high, w))
        if kind == "two_before":
            return Pattern(kind, token=low, before=(high,))
        if kind == "class_after":
            return Pattern(kind, token_class=key % _N_CLASSES, before=(key // _N_CLASSES,))
        if kind == "after_class":
            return Pattern(kind, token=low, before_class=high)
        if kind == "in_state":
            return Pattern(kind, token=low, state=high)
        if kind == "class_in_state":
            return Pattern(kind, token_class=key % _N_CLASSES, state=key // _N_CLASSES)
        assert kind == "before"
        return Pattern(kind, token=high, after=low)


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
    has_signs = np.array([bool(found) for found in signs])
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
