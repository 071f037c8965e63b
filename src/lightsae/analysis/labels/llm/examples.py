"""Windows of held-out text on which a label is tested: some where the feature fires, some where it does not.

Axes: rows * S = T tokens of the pool, N firings, F features.

Negatives:  random   the feature fires nowhere in the window
            near     the same, and a similar feature fires on its peak
            hard     the same, and its peak is a token on which the feature does fire elsewhere

A window never reaches into another document. What is drawn follows from (seed, feature) alone.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.reading.firings import AFTER, BEFORE

NEGATIVES = ("random", "near", "hard")
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Example:
    """One window.

    Attributes:
        texts: Its tokens.
        values: The feature's activation on each; 0 if it does not fire.
        peak: Index of the token that the window is around.
        document: Running number of its document.
        fires: Whether the feature fires in it.
        kind: positive, random, near, hard.
    """

    texts: tuple[str, ...]
    values: tuple[float, ...]
    peak: int
    document: int
    fires: bool
    kind: str

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.values), "a value for each token"
        assert 0 <= self.peak < len(self.texts), "the peak lies in the window"
        assert self.fires == any(value > 0 for value in self.values), "`fires` says what the values say"


@dataclass(frozen=True)
class ScorePool:
    """Text that no label was made from, and where features fire in it.

    Attributes:
        tokens: (rows, S) token ids.
        documents: (rows, S) running document numbers.
        texts: (V,) what each token id says.
        firings: (N,) flat token indices, by feature, ascending within each.
        starts: (F + 1,) where each feature's begin.
        counted: (T,) which tokens count; windows are around no others.
        values: (N,) activations; None if they were not kept: then positives have no strata.
    """

    tokens: Ints
    documents: Ints
    texts: Sequence[str]
    firings: Ints
    starts: Ints
    counted: NDArray[np.bool_]
    values: NDArray[np.floating[Any]] | None = None

    def firings_of(self, feature: int) -> tuple[Ints, NDArray[np.floating[Any]]]:
        """Return the tokens on which a feature fires, ascending, and how strongly (1 where that was not kept)."""
        part = slice(int(self.starts[feature]), int(self.starts[feature + 1]))
        places = self.firings[part]
        return places, np.ones(len(places)) if self.values is None else self.values[part]

    def tokens_like(self, token: int) -> Ints:
        """Return where a token stands and counts, ascending."""
        order, sorted_tokens = self._by_token
        low, high = np.searchsorted(sorted_tokens, [token, token + 1])
        return order[low:high]

    @cached_property
    def counted_places(self) -> Ints:
        """Tokens that count, ascending."""
        return np.flatnonzero(self.counted)

    @cached_property
    def _by_token(self) -> tuple[Ints, Ints]:
        places = self.counted_places
        tokens = self.tokens.ravel()[places]
        order = np.argsort(tokens, kind="stable")
        return places[order], tokens[order]

    def bounds(self, place: int) -> tuple[int, int]:
        """Return the first token of the window around a token, and the one after its last."""
        context = self.tokens.shape[1]
        start = place // context * context
        low, high = max(start, place - BEFORE), min(start + context, place + AFTER + 1)
        same = self.documents.ravel()[low:high] == self.documents.ravel()[place]
        before, after = same[: place - low][::-1], same[place - low :]
        return place - (len(before) if before.all() else int(before.argmin())), place + (
            len(after) if after.all() else int(after.argmin())
        )


def positives(pool: ScorePool, feature: int, count: int, seed: int) -> list[Example]:
    """Draw windows around firings of a feature: one from each of `count` equal slices of its ordered activations.

    A row gives one window at most, around one of its firings at random.

    Returns:
        The windows, the weakest first; fewer than `count` if it fires in fewer rows, none if it never fires.
    """
    places, values = pool.firings_of(feature)
    draw = _generator(seed, feature, "positives")
    mixed = draw.permutation(len(places))
    _, first = np.unique(places[mixed] // pool.tokens.shape[1], return_index=True)
    kept = mixed[first]
    kept = kept[np.argsort(values[kept], kind="stable")]
    slices = np.array_split(kept, min(count, len(kept))) if len(kept) and count else []
    return [_example(pool, feature, int(places[draw.choice(part)]), "positive") for part in slices]


def negatives(
    pool: ScorePool,
    feature: int,
    count: int,
    seed: int,
    *,
    similar: Sequence[int] = (),
    kinds: Sequence[str] = NEGATIVES,
) -> dict[str, list[Example]]:
    """Draw windows in which a feature does not fire.

    Args:
        pool: The text.
        feature: Whose negatives these are.
        count: Windows of each kind.
        seed: Seed of the draw.
        similar: Features near to it (by decoder cosine, or firing together with it); needed for `near`.
        kinds: Which of NEGATIVES.

    Returns:
        By kind; fewer than `count` windows, or none, if the text has no more: a feature that fires on every «return»
        has no hard negatives of that token.
    """
    candidates = {"random": _anywhere, "near": _near, "hard": _hard}
    windows: dict[str, list[Example]] = {}
    taken: set[int] = set()
    # The rarer kinds first: the others can do without the windows that these take.
    for kind in sorted(kinds, key=NEGATIVES.index, reverse=True):
        draw = _generator(seed, feature, kind)
        chosen: list[int] = []
        for place in candidates[kind](pool, feature, similar, draw):
            if len(chosen) == count:
                break
            row = place // pool.tokens.shape[1]
            if row not in taken and not _fires_around(pool, feature, place):
                taken.add(row)
                chosen.append(place)
        windows[kind] = [_example(pool, feature, place, kind) for place in chosen]
    return {kind: windows[kind] for kind in kinds}


def windows_of(rows: Sequence[Mapping[str, Any]], least: float = 0.0) -> list[Example]:
    """Turn rows of the table `contexts` (one feature's) into examples.

    Args:
        rows: As `schema.CONTEXTS` has them; near misses become negatives of the kind `near`.
        least: The feature fires above this activation; a lower one counts as 0.
    """
    examples = []
    for row in rows:
        values = tuple(float(v) if v > least else 0.0 for v in row["values"])
        place = int(row["peak"]), int(row["document"])
        examples.append(
            Example(tuple(row["texts"]), values, *place, any(values), "positive" if any(values) else "near")
        )
    return examples


def _anywhere(pool: ScorePool, feature: int, similar: Sequence[int], draw: np.random.Generator) -> Iterator[int]:
    # Tries are bounded: a feature that fires in nearly every window has few random negatives.
    if len(pool.counted_places):
        yield from draw.choice(pool.counted_places, min(4096, len(pool.counted_places)), replace=False).tolist()


def _near(pool: ScorePool, feature: int, similar: Sequence[int], draw: np.random.Generator) -> Iterator[int]:
    """Yield firings of the similar features, one of each in turn."""
    lists = [draw.permutation(pool.firings_of(other)[0]).tolist() for other in similar if other != feature]
    while lists := [places for places in lists if places]:
        for places in lists:
            yield places.pop()


def _hard(pool: ScorePool, feature: int, similar: Sequence[int], draw: np.random.Generator) -> Iterator[int]:
    """Yield places of tokens on which the feature fires, each token as often as the feature fires on it."""
    places, _ = pool.firings_of(feature)
    tokens, fires = np.unique(pool.tokens.ravel()[places], return_counts=True)
    lists = {token: draw.permutation(pool.tokens_like(token)).tolist() for token in tokens.tolist()}
    # A shuffled deck in which a token stands as often as the feature fires on it, gone through until all run out.
    deck = draw.permutation(np.repeat(tokens, np.minimum(fires, 64))).tolist()
    while any(lists.values()):
        for token in deck:
            if lists[token]:
                yield lists[token].pop()


def _fires_around(pool: ScorePool, feature: int, place: int) -> bool:
    low, high = np.searchsorted(pool.firings_of(feature)[0], pool.bounds(place))
    return bool(low < high)


def _example(pool: ScorePool, feature: int, place: int, kind: str) -> Example:
    low, high = pool.bounds(place)
    places, values = pool.firings_of(feature)
    inside = slice(*np.searchsorted(places, [low, high]))
    window = np.zeros(high - low)
    window[places[inside] - low] = values[inside]
    return Example(
        tuple(pool.texts[token] for token in pool.tokens.ravel()[low:high].tolist()),
        tuple(window.tolist()),
        place - low,
        int(pool.documents.ravel()[place]),
        bool(window.any()),
        kind,
    )


def _generator(seed: int, feature: int, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/labels/{purpose}/{feature}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
