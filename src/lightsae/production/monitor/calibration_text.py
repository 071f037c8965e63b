"""Text to calibrate on, as token rows: strings, token lists or rows of a corpus.

Axes:  R rows, S columns.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.reading.text import TextRows
from lightsae.errors import ConfigError


@dataclass(frozen=True)
class CalibrationText:
    """Token rows, padded on the right.

    Attributes:
        tokens: (R, S) ids.
        documents: (R, S) of which document each is.
        real: (R, S) which are no padding.
    """

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]
    real: NDArray[np.bool_]

    @classmethod
    def of(
        cls, texts: TextRows | Sequence[str] | Sequence[Sequence[int]], tokenizer: Any, longest: int
    ) -> "CalibrationText":
        """Take rows of a corpus, or documents as strings or token ids.

        Args:
            texts: TextRows, or one entry a document.
            tokenizer: For strings; it adds what it adds at the start of a text.
            longest: Columns that the model takes; longer documents lose their end.

        Raises:
            ConfigError: There is no text, or strings without a tokenizer.
        """
        if isinstance(texts, TextRows):
            if not len(texts):
                raise ConfigError("texts is empty; give held-out documents to calibrate on.")
            return cls(texts.tokens.astype(np.int64), texts.documents, np.ones(texts.tokens.shape, bool))
        if isinstance(texts, str):
            raise ConfigError("texts is one string; write a list with one entry a document.")
        rows = [_ids(text, tokenizer)[:longest] for text in texts]
        width = max(map(len, rows), default=0)
        if width == 0:
            raise ConfigError("texts is empty; give held-out documents to calibrate on.")
        tokens, real = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), bool)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)], real[row, : len(ids)] = ids, True
        return cls(tokens, np.broadcast_to(np.arange(len(rows))[:, None], tokens.shape), real)

    def sha256(self) -> str:
        """Return a hash of the tokens and of where documents begin."""
        parts = (self.tokens[self.real], self.documents[self.real])
        return hashlib.sha256(b"".join(np.ascontiguousarray(p, np.int64).tobytes() for p in parts)).hexdigest()


def _ids(text: str | Sequence[int], tokenizer: Any) -> list[int]:
    if not isinstance(text, str):
        return [int(token) for token in text]
    if tokenizer is None:
        raise ConfigError("texts holds strings, and the model has no tokenizer; give token ids or tokenizer=...")
    return list(tokenizer(text)["input_ids"])
