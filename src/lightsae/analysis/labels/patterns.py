"""Patterns of text that can be tested at a token: what the offline labels are made of.

Axes: T tokens of a text, V vocabulary.

A kind of pattern gives every token one key (say, the pair of the token before and the token itself); a pattern is a
kind with one key. Nearly all look at the token and at what stands before it, which is what a causal model can know; the
concepts look at the whole document: where in Python source the token stands, and whose words it is in a conversation.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.roles import PLACES
from lightsae.analysis.labels.concepts import aspects_of
from lightsae.analysis.labels.python_source import ASPECTS as OF_SOURCE
from lightsae.errors import FormatError
from lightsae.parsing import parse_json

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
# The kinds with a state are no longer learned: they say what a reader who begins at the row's start would take for a
# string, and `region` knows. Rules of older dictionaries have them.
STATES = ("outside strings and comments", "inside a string", "inside a comment", "inside a long string")
# Aspects of a token's place, each with what its numbers stand for; 0: none of these, or nothing is known.
SPEAKER = "speaker"
ASPECTS = {**OF_SOURCE, SPEAKER: ("", *PLACES)}
# Of what the key of each kind is made up, the most significant first.
_PARTS = {
    "token": ("token",),
    "class": ("token_class",),
    "after": ("previous", "token"),
    "after_two": ("second", "previous", "token"),
    "two_before": ("second", "token"),
    "class_after": ("previous", "token_class"),
    "after_class": ("before_class", "token"),
    "in_state": ("state", "token"),
    "class_in_state": ("state", "token_class"),
    "before": ("token", "after"),
    # Concepts: an aspect of the place alone, with the token, with its class.
    **{aspect: (aspect,) for aspect in ASPECTS},
    **{f"{aspect}_token": (aspect, "token") for aspect in ASPECTS},
    **{f"{aspect}_class": (aspect, "token_class") for aspect in ASPECTS},
}
KINDS = tuple(kind for kind, parts in _PARTS.items() if "state" not in parts)
# How many things a pattern of each kind names.
N_PARTS = {kind: len(parts) for kind, parts in _PARTS.items()}
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
        aspect: Name of an aspect of its place, see ASPECTS; empty if none is given.
        value: Number of what that aspect is.
    """

    kind: str
    token: int = -1
    token_class: int = -1
    before: tuple[int, ...] = ()
    before_class: int = -1
    state: int = -1
    after: int = -1
    aspect: str = ""
    value: int = -1


class PatternKeys:
    """The keys of every kind, for the tokens of a text.

    Args:
        tokens: (rows, S) token ids; nothing is known of what stands before a row.
        texts: (V,) what each token says.
        documents: (rows, S) running numbers of the documents; None: every row is one.
        numbers: (rows,) running numbers of the rows: one that follows on another continues its last document.
        roles: (rows, S) whose words each token is; None: nothing is known of it.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        texts: Sequence[str],
        documents: NDArray[np.int64] | None = None,
        numbers: NDArray[np.int64] | None = None,
        roles: NDArray[np.uint8] | None = None,
    ) -> None:
        self._roles = roles
        self.vocabulary = len(texts)
        self._tokens, self._texts, self._place = tokens, texts, (documents, numbers)
        self._parts: dict[str, Keys] = {}
        self._keys: dict[str, Keys] = {}

    def of(self, kind: str) -> Keys:
        """Return the keys of one kind, (T,); -1 where a concept is not known. They are worked out once."""
        if kind not in self._keys:
            first, *others = _PARTS[kind]
            key = self._part(first)
            for name in others:
                key = key * self._base(name) + self._part(name)
            if first in ASPECTS:
                # Nothing is known of the place: then no concept holds there.
                key = np.where(self._part(first) == 0, -1, key)
            self._keys[kind] = key.ravel()
        return self._keys[kind]

    def _part(self, name: str) -> Keys:
        """Return one part of the keys, (rows, S); the slow ones only if a kind asks for them."""
        if name not in self._parts:
            if name == SPEAKER:
                nothing = np.zeros(self._tokens.shape, np.int64)
                self._parts[name] = nothing if self._roles is None else self._roles.astype(np.int64) + 1
            elif name in ASPECTS:
                self._parts |= aspects_of(self._tokens, self._texts, *self._place)
            elif name == "state":
                self._parts[name] = states_of(self._tokens, self._texts)
            else:
                self._parts |= self._surroundings()
        return self._parts[name]

    def _surroundings(self) -> dict[str, Keys]:
        current = self._tokens.astype(np.int64)
        classes = np.array([class_of(text) for text in self._texts] + [_NOTHING])
        previous, second, following = (shifted(current, by, self.vocabulary) for by in (1, 2, -1))
        return {
            "token": current,
            "previous": previous,
            "second": second,
            "after": following,
            "token_class": classes[current],
            "before_class": classes[previous],
        }

    def frames(self, kind: str, keys: Keys) -> Keys:
        """Return keys without their token: equal for the patterns of a kind that read as one list of tokens."""
        names = _PARTS[kind]
        if "token" not in names:
            return keys
        place = names.index("token")
        below = int(np.prod([self._base(name) for name in names[place + 1 :]], dtype=np.int64))
        token = keys // below % (self.vocabulary + 1)
        return keys - token * below

    def pattern(self, kind: str, key: int) -> Pattern:
        """Return the pattern that a key stands for."""
        first, *others = _PARTS[kind]
        values: dict[str, Any] = {}
        for name in reversed(others):
            key, values[name] = divmod(key, self._base(name))
        values[first] = key
        before = tuple(values.pop(name) for name in ("second", "previous") if name in values)
        if aspect := next((name for name in ASPECTS if name in values), ""):
            return Pattern(kind, aspect=aspect, value=values.pop(aspect), **values)
        return Pattern(kind, before=before, **values)

    def patterns(self, keys: Iterable[tuple[str, int]]) -> list[Pattern]:
        """Return the patterns that (kind, key) pairs stand for."""
        return [self.pattern(kind, key) for kind, key in keys]

    def _base(self, part: str) -> int:
        """Return how many values a part of a key may have; beyond the row's ends a token is `vocabulary`."""
        return _N_CLASSES if part == "token_class" else self.vocabulary + 1


def patterns_of(rule: str) -> tuple[tuple[str, int], ...]:
    """Return the (kind, key) pairs of a rule as the table `labels` holds it; none if it is a rule of another sort.

    Raises:
        FormatError: It is damaged.

    Example:
        >>> patterns_of('{"patterns": [["token", 7]], "shares": [0.9]}')
        (('token', 7),)
    """
    try:
        said = parse_json(rule)
        pairs = tuple((kind, key) for kind, key in said.get("patterns", ()))
    except (ValueError, TypeError, AttributeError) as error:
        raise FormatError(
            f"The rule {rule[:60]!r} of a label is damaged ({error!s:.200}); build the dictionary again."
        ) from error
    for kind, key in pairs:
        if not isinstance(kind, str) or kind not in _PARTS or type(key) is not int or not abs(key) < 2**63:
            raise FormatError(f"The rule {rule[:60]!r} of a label has no such pattern: {kind!r}, {key!r}.")
    return pairs


def needs_roles(patterns: Iterable[tuple[str, int]]) -> bool:
    """Return whether a rule asks whose words a token is, which of plain text nobody knows."""
    return any(SPEAKER in _PARTS[kind] for kind, _ in patterns)


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
