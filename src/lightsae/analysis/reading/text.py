"""The text that an SAE is interpreted on: token rows, in which every document has one use.

Axes:  n rows, S tokens in a row.
Uses:  `contexts`: held-out documents whose firings are shown, and that labels are chosen on; `scores`: other held-out
       documents, on which labels are tested and which nothing else ever sees; `mining`: training documents, from which
       the offline labels are learned. A row in which documents of both held-out uses meet is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.corpus.documents import Split
from lightsae.activations.corpus.mixture import open_rows
from lightsae.activations.corpus.token_rows import TokenRows
from lightsae.activations.settings import DataSettings
from lightsae.lm.vocabulary import Vocabulary

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
        share: Share of the tokens that the scores are to get.
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


# One row of the corpus, and its running number.
Row = tuple[TokenRows, int]


@dataclass(frozen=True)
class TextRows:
    """Token rows of one use.

    Attributes:
        tokens: (n, S) token ids.
        documents: (n, S) running numbers of the documents.
        numbers: (n,) running numbers of the rows.
        roles: (n, S) whose words each token is; None where no text is a conversation.
        datasets: (n,) place of each row's dataset in a mixture; None: there is one dataset.
    """

    tokens: NDArray[np.int32]
    documents: NDArray[np.int64]
    numbers: NDArray[np.int64]
    roles: NDArray[np.uint8] | None = None
    datasets: NDArray[np.int16] | None = None

    @classmethod
    def gather(cls, rows: Sequence[Row], context: int) -> "TextRows":
        """Stack single rows of `context` tokens; there may be none."""
        if not rows:
            return cls.of(TokenRows.empty(context), np.empty(0, np.int64))
        parts, numbers = zip(*rows, strict=True)
        return cls.of(TokenRows.joined(parts), np.array(numbers))

    @classmethod
    def of(cls, rows: TokenRows, numbers: NDArray[np.int64]) -> "TextRows":
        """Return rows of a corpus with their running numbers."""
        return cls(rows.tokens, rows.documents, numbers, rows.roles, rows.datasets)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_tokens(self) -> int:
        return self.tokens.size

    @property
    def of_corpus(self) -> TokenRows:
        """The rows without their numbers."""
        return TokenRows(self.tokens, self.documents, self.roles, self.datasets)

    def taken(self, places: NDArray[np.int64] | slice) -> "TextRows":
        """Return some of the rows."""
        return TextRows.of(self.of_corpus.taken(places), self.numbers[places])

    def spread(self, count: int) -> "TextRows":
        """Return `count` of the rows, evenly from first to last; all of them if there are fewer."""
        return self.taken(
            np.unique(np.linspace(0, max(0, len(self) - 1), min(count, len(self))).round().astype(np.int64))
        )

    def batches(self, rows: int, start: int = 0) -> Iterator["TextRows"]:
        """Yield the rows from `start` on, `rows` at a time."""
        for begin in range(start, len(self), rows):
            yield self.taken(slice(begin, begin + rows))


@dataclass(frozen=True)
class CorpusRows:
    """The first rows of a split, read from the corpus as they are asked for: memory does not grow with their number.

    Attributes:
        corpus: Where they come from.
        vocabulary: That of the model which reads them.
        split: `train` or `validation`.
        n_tokens: About how many tokens, at least a row; fewer where the held-out documents end.
    """

    corpus: DataSettings
    vocabulary: Vocabulary
    split: Split
    n_tokens: int

    def batches(self, rows: int, start: int = 0) -> Iterator[TextRows]:
        """Yield the rows, `rows` at a time."""
        assert start == 0, "a corpus is read from its start"
        source = open_rows(self.corpus, self.vocabulary, self.split)
        number, count = 0, max(1, self.n_tokens // self.corpus.context_size)
        while number < count and len(part := source.take(min(rows, count - number))):
            yield TextRows.of(part, number + np.arange(len(part)))
            number += len(part)
        source.close()


@dataclass(frozen=True)
class Texts:
    """All text of an interpretation, as token ids: 4 bytes per token, 8 for its document.

    Attributes:
        contexts, scores, mining: See the head of this file.
        fingerprint: Names the corpus and tells two versions of it apart.
        left_out: Rows in which both held-out uses met.
    """

    contexts: TextRows
    scores: TextRows
    mining: TextRows
    fingerprint: str
    left_out: int

    @classmethod
    def read(
        cls, corpus: DataSettings, vocabulary: Vocabulary, *, tokens: int, score_tokens: int, mining_tokens: int
    ) -> "Texts":
        """Read held-out rows until both uses have their tokens, or the split ends; and training rows.

        Raises:
            CorpusError: There is no such corpus, or no text in it.
        """
        context = corpus.context_size
        # By whether it is a text for the scores.
        counts = {False: tokens // context, True: score_tokens // context}
        rows: dict[bool, list[Row]] = {False: [], True: []}
        uses = DocumentUses(score_tokens / (tokens + score_tokens))
        source, number, left_out = open_rows(corpus, vocabulary, "validation"), 0, 0
        while any(len(rows[use]) < counts[use] for use in counts):
            part = source.take(_READ_ROWS)
            for place in range(len(part)):
                for_scores = uses.is_for_scores(part.documents[place])
                use = bool(for_scores[0])
                if for_scores.any() != for_scores.all():
                    left_out += 1
                elif len(rows[use]) < counts[use]:
                    rows[use].append((part.taken(slice(place, place + 1)), number))
                number += 1
            if len(part) < _READ_ROWS:
                break
        fingerprint = source.fingerprint
        source.close()
        contexts, scores = (TextRows.gather(rows[use], context) for use in (False, True))
        mining = _training_rows(corpus, vocabulary, mining_tokens // context)
        return cls(contexts, scores, mining, fingerprint, left_out)


def _training_rows(corpus: DataSettings, vocabulary: Vocabulary, count: int) -> TextRows:
    if not count:
        return TextRows.gather([], corpus.context_size)
    # A small corpus is not read twice: the same text again would teach a label nothing.
    source = open_rows(corpus, vocabulary, "train", once=True)
    rows = source.take(count)
    source.close()
    return TextRows.of(rows, np.arange(len(rows)))
