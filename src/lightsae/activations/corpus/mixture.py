"""Rows of several datasets, in proportion to weights.

Axes:    n rows, context tokens in a row.
Rows:    Each is of one dataset, packed as if there were no other. The next row is of the dataset that is furthest
         behind its share, counted in tokens to train on; so at every place each is within a row of its share.
Resume:  The state is that of every dataset before the rows that are at hand, and how many of them are used up.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from lightsae.activations.corpus.documents import Split
from lightsae.activations.corpus.rows import RowSource
from lightsae.activations.corpus.token_rows import TokenRows
from lightsae.activations.settings import DataSettings
from lightsae.errors import CorpusError, arg, under
from lightsae.lm.vocabulary import Vocabulary

# Rows that are taken from a dataset at once. They decide nothing else.
_AHEAD = 64
# Rows of a dataset without a token to train on, one after another, after which it is given up.
_HOPELESS = 4096


@contextmanager
def entry_of(name: str) -> Iterator[None]:
    """Say in errors about a dataset of a mixture which entry it is."""
    keys = ("dataset", "dataset_config", "dataset_split", "dataset_revision", "validation_split", "text_column")
    with under(**{key: f"datasets.{name}.{key}" for key in keys}):
        yield


class _Dataset:
    """One dataset of a mixture, read some rows ahead.

    Attributes:
        name: Its name.
        weight: Its share of the tokens, relative to the other weights.
        source: Its rows.
        dealt: Tokens to train on in the rows that were dealt.
    """

    def __init__(self, name: str, weight: float, source: RowSource) -> None:
        self.name, self.weight, self.source = name, weight, source
        self.begin_at({"source": source.state_dict(), "used": 0, "dealt": 0})

    def begin_at(self, state: Mapping[str, Any]) -> None:
        self._start, self._without = state["source"], 0
        self.dealt: int = state["dealt"]
        self.source.load_state_dict(self._start)
        self._read(max(_AHEAD, state["used"]))
        self._used: int = state["used"]

    def state_dict(self) -> dict[str, Any]:
        return {"source": self._start, "used": self._used, "dealt": self.dealt}

    @property
    def behind(self) -> float:
        """How much it has had for its weight: the dataset with the least is next."""
        return self.dealt / self.weight

    def is_at_end(self) -> bool:
        """Return whether there are no more rows; reads some if there are none at hand."""
        if self._used == len(self._rows) > 0:
            self._start = self.source.state_dict()
            self._read(_AHEAD)
        return self._used == len(self._rows)

    def deal(self) -> tuple[TokenRows, int]:
        """Return the rows at hand, and which of them is next."""
        place, count = self._used, int(self._counts[self._used])
        self._used, self.dealt = place + 1, self.dealt + count
        self._without = 0 if count else self._without + 1
        if self._without == _HOPELESS:
            settings = self.source.settings
            raise CorpusError(
                f"{arg('datasets')}: in {_HOPELESS} rows of {self.name!r} there is no token of {arg('roles')} "
                f"{', '.join(settings.roles or [])}; name another role, or leave the dataset out."
            )
        return self._rows, place

    def _read(self, count: int) -> None:
        settings = self.source.settings
        with entry_of(self.name):
            self._rows = self.source.take(count)
        self._counts = self._rows.chosen(settings.roles, settings.skip_positions).sum(1)
        self._used = 0


class MixedRows:
    """Deals the rows of several datasets. What it takes and has is what `RowSource` takes and has.

    Document numbers say the dataset too: the n-th document of the d-th of D datasets is number n * D + d.
    """

    state_kinds: ClassVar[Mapping[str, Any]] = {"fingerprint": None, "rows": 0, "datasets": {}}

    def __init__(self, settings: DataSettings, vocabulary: Vocabulary, split: Split, *, once: bool = False) -> None:
        self.settings, self._rows = settings, 0
        weights = [part.weight for part in settings.datasets or []]
        sources = {}
        for name, own in settings.each_dataset().items():
            with entry_of(name):
                sources[name] = RowSource(own, vocabulary, split, once=once)
        self._datasets = []
        for (name, source), weight in zip(sources.items(), weights, strict=True):
            source.with_roles = any(one.conversations for one in sources.values())
            self._datasets.append(_Dataset(name, weight, source))
        self.fingerprint = " + ".join(f"{one.weight:g} x {one.source.fingerprint}" for one in self._datasets)

    @property
    def sources(self) -> dict[str, RowSource]:
        return {one.name: one.source for one in self._datasets}

    def take(self, n: int) -> TokenRows:
        dealt: list[tuple[TokenRows, int, int]] = []
        while len(dealt) < n:
            left = [(one.behind, number) for number, one in enumerate(self._datasets) if not one.is_at_end()]
            if not left:
                break
            _, number = min(left)
            dealt.append((*self._datasets[number].deal(), number))
        self._rows += len(dealt)
        return self._stacked(dealt)

    def _stacked(self, dealt: list[tuple[TokenRows, int, int]]) -> TokenRows:
        context, count = self.settings.context_size, len(self._datasets)
        if not dealt:
            return TokenRows.empty(context)
        roles = [rows.roles[place] for rows, place, _ in dealt if rows.roles is not None]
        return TokenRows(
            np.stack([rows.tokens[place] for rows, place, _ in dealt]),
            np.stack([rows.documents[place] * count + number for rows, place, number in dealt]),
            np.stack(roles) if roles else None,
            np.array([number for _, _, number in dealt], np.int16),
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "rows": self._rows,
            "datasets": {one.name: one.state_dict() for one in self._datasets},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place of a `state_dict`.

        Raises:
            CorpusError: The state belongs to another mixture.
        """
        if state["fingerprint"] != self.fingerprint or set(state["datasets"]) != {one.name for one in self._datasets}:
            raise CorpusError(
                f"{arg('datasets')} are now {self.fingerprint!r}, but the checkpoint stopped in "
                f"{state['fingerprint']!r}. Resume with the same datasets and weights, or start a new run."
            )
        self._rows = state["rows"]
        for one in self._datasets:
            one.begin_at(state["datasets"][one.name])

    def close(self) -> None:
        for one in self._datasets:
            one.source.close()


# What makes token rows of a corpus: one dataset, or a mixture.
Rows = RowSource | MixedRows


def open_rows(settings: DataSettings, vocabulary: Vocabulary, split: Split, *, once: bool = False) -> Rows:
    """Return what makes rows of a corpus; see `RowSource`."""
    if settings.datasets is None:
        return RowSource(settings, vocabulary, split, once=once)
    return MixedRows(settings, vocabulary, split, once=once)
