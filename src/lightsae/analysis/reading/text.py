"""The text that a dictionary is interpreted on: token rows, in which every document has one use.

Axes:  n rows, S tokens in a row.
Uses:  `contexts`: held-out documents whose firings are shown, and that labels are chosen on; `scores`: other held-out
       documents, on which labels are tested and which nothing else ever sees; `mining`: training documents, from which
       the offline labels are learned. A row in which documents of both held-out uses meet is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.corpus.rows import RowSource, TokenRows
from lightsae.activations.settings import DataSettings

# Rows that are read from the corpus at once.
_READ_ROWS = 64
# Each change of use may cost a row: one use is dealt until it is this many rows ahead of its share.
_ROWS_AHEAD = 4


@dataclass
class DocumentUses:
    """Deals held-out documents, as they are first met, to `scores` and to `contexts`.

    The uses take turns: the scores are dealt until they are ahead of their share of the tokens so far, then the
    contexts. No length has to be known beforehand, both sides come from all over the corpus, and where a row holds many
    short documents most rows still have one use.

    Attributes:
        share: Of the tokens that the scores are to get.
    """

    share: float
    scores: set[int] = field(default_factory=set)
    contexts: set[int] = field(default_factory=set)
    _tokens: list[int] = field(default_factory=lambda: [0, 0])
    _turn_of_scores: bool = False

    def is_for_scores(self, documents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the use of each token of a row; documents come in order."""
        numbers, starts = np.unique(documents, return_index=True)
        for number in numbers[np.argsort(starts)].tolist():
            if number not in self.scores and number not in self.contexts:
                due = self.share * sum(self._tokens)
                if abs(due - self._tokens[1]) > min(_ROWS_AHEAD * len(documents), due / 2):
                    self._turn_of_scores = due > self._tokens[1]
                (self.scores if self._turn_of_scores else self.contexts).add(number)
            self._tokens[number in self.scores] += int((documents == number).sum())
        return np.isin(documents, list(self.scores))


@dataclass(frozen=True)
class Rows:
    """Token rows of one use, with the running numbers of their documents and of the rows."""

    tokens: NDArray[np.int32]
    documents: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tokens)

    def batches(self, rows: int, start: int = 0) -> Iterator["Rows"]:
        """Yield the rows from `start` on, some at a time."""
        for begin in range(start, len(self), rows):
            part = slice(begin, begin + rows)
            yield Rows(self.tokens[part], self.documents[part], self.numbers[part])


@dataclass(frozen=True)
class Texts:
    """All text of an interpretation, as token ids: 4 bytes a token, 8 for its document.

    Attributes:
        contexts, scores, mining: See the head of this file.
        fingerprint: Names the corpus and tells two versions of it apart.
        left_out: Rows in which both held-out uses met.
    """

    contexts: Rows
    scores: Rows
    mining: Rows
    fingerprint: str
    left_out: int

    @classmethod
    def read(
        cls, corpus: DataSettings, tokenizer: Any, *, tokens: int, score_tokens: int, mining_tokens: int
    ) -> "Texts":
        """Read held-out rows until both uses have their tokens, or the split ends; and training rows.

        Raises:
            CorpusError: There is no such corpus, or no text in it.
        """
        context = corpus.context_size
        wanted = {False: tokens // context, True: score_tokens // context}
        uses = DocumentUses(score_tokens / (tokens + score_tokens))
        found: dict[bool, list[tuple[NDArray[np.int32], NDArray[np.int64], int]]] = {False: [], True: []}
        source, number, left_out = RowSource(corpus, tokenizer, "validation"), 0, 0
        while len(found[False]) < wanted[False] or len(found[True]) < wanted[True]:
            rows = source.take(_READ_ROWS)
            for ids, documents in zip(rows.tokens, rows.documents, strict=True):
                use = uses.is_for_scores(documents)
                if use.any() and not use.all():
                    left_out += 1
                elif len(found[bool(use[0])]) < wanted[bool(use[0])]:
                    found[bool(use[0])].append((ids, documents, number))
                number += 1
            if len(rows) < _READ_ROWS:
                break
        fingerprint = source.fingerprint
        source.close()
        mining = _training_rows(corpus, tokenizer, mining_tokens // context)
        return cls(_gather(found[False], context), _gather(found[True], context), mining, fingerprint, left_out)


def _training_rows(corpus: DataSettings, tokenizer: Any, rows: int) -> Rows:
    if rows == 0:
        return _gather([], corpus.context_size)
    source = RowSource(corpus, tokenizer, "train")
    read: list[TokenRows] = []
    # A small corpus is not read twice: the same text again would teach a label nothing. A row at a time, for the one
    # in which it begins again has to be known.
    while len(read) < rows:
        row = source.take(1)
        if source.epoch > 0:
            break
        read.append(row)
    source.close()
    tokens, documents = np.concatenate([r.tokens for r in read]), np.concatenate([r.documents for r in read])
    return Rows(tokens, documents, np.arange(len(tokens)))


def _gather(found: list[tuple[NDArray[np.int32], NDArray[np.int64], int]], context: int) -> Rows:
    if not found:
        return Rows(np.empty((0, context), np.int32), np.empty((0, context), np.int64), np.empty(0, np.int64))
    return Rows(np.stack([f[0] for f in found]), np.stack([f[1] for f in found]), np.array([f[2] for f in found]))
