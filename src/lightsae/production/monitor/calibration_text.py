"""The text that thresholds come from: rows of a corpus, strings, token ids, or conversations.

Axes:  R rows, S columns.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.corpus.documents import Conversation, SpokenIds
from lightsae.activations.roles import ROLES, TEXT, among
from lightsae.analysis.reading.text import TextRows
from lightsae.errors import ConfigError, arg
from lightsae.production.monitor.conversations import PromptWriter, is_conversation


@dataclass(frozen=True)
class CalibrationText:
    """Token rows, padded on the right.

    Attributes:
        tokens: (R, S) ids.
        documents: (R, S) of which document each is.
        real: (R, S) which are no padding.
        counted: (R, S) which have one of the roles that count.
        roles: (R, S) whose words each is; None where no text is a conversation.
    """

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]
    real: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    roles: NDArray[np.uint8] | None

    @classmethod
    def of(
        cls,
        texts: TextRows | Sequence[str] | Sequence[Sequence[int]] | Sequence[Conversation],
        tokenizer: Any,
        longest: int,
        roles: Sequence[str] | None,
    ) -> "CalibrationText":
        """Take rows of a corpus, or documents as strings, token ids or lists of messages.

        Args:
            texts: TextRows, or one entry per document.
            tokenizer: For strings, to which it adds what it adds at the start of a text, and for conversations, which
                it writes out in its chat template.
            longest: Columns that the model takes; longer documents lose their end.
            roles: Those whose tokens count; None: all.

        Raises:
            ConfigError: There is no text, strings without a tokenizer, or no token with one of the roles.
            CorpusError: The chat template does not take a conversation.
        """
        if isinstance(texts, str):
            raise ConfigError(f"{arg('texts')} is one string; write a list with one entry a document.")
        spoken: NDArray[np.uint8] | None
        if isinstance(texts, TextRows):
            tokens, documents, spoken = texts.tokens.astype(np.int64), texts.documents, texts.roles
            real = np.ones(tokens.shape, bool)
        else:
            writer = PromptWriter(tokenizer, roles, "texts")
            rows = [_ids(text, tokenizer, writer).within(0, longest) for text in texts]
            sizes = np.array([len(row) for row in rows], np.int64)
            real = np.arange(sizes.max(initial=0)) < sizes[:, None]
            tokens, spoken = np.zeros(real.shape, np.int64), None
            tokens[real] = np.concatenate([np.empty(0, np.int64), *(row.ids for row in rows)])
            if any(map(is_conversation, texts)):
                spoken = np.full(real.shape, TEXT, np.uint8)
                spoken[real] = np.concatenate([row.roles for row in rows])
            documents = np.broadcast_to(np.arange(len(rows))[:, None], tokens.shape)
        if not tokens.size:
            raise ConfigError(f"{arg('texts')} is empty; give held-out documents to calibrate on.")
        return cls(tokens, documents, real, _counted(real, spoken, roles), spoken)

    def sha256(self) -> str:
        """Return a hash of the tokens and of where documents begin."""
        parts = (self.tokens[self.real], self.documents[self.real])
        return hashlib.sha256(b"".join(np.ascontiguousarray(p, np.int64).tobytes() for p in parts)).hexdigest()


def _counted(
    real: NDArray[np.bool_], spoken: NDArray[np.uint8] | None, roles: Sequence[str] | None
) -> NDArray[np.bool_]:
    if roles is None:
        return real
    if spoken is None and ROLES[TEXT] not in roles:
        raise ConfigError(
            "roles",
            list(roles),
            f"but {arg('texts')} holds no conversations; give lists of messages, or rows of a corpus of them",
        )
    counted = real if spoken is None else real & among(spoken, roles)
    if not counted.any():
        raise ConfigError("roles", list(roles), f"and no token of {arg('texts')} has one of them; name other roles")
    return counted


def _ids(text: Any, tokenizer: Any, writer: PromptWriter) -> SpokenIds:
    if is_conversation(text):
        return writer.write(text)
    if not isinstance(text, str):
        return SpokenIds.of(np.array([int(token) for token in text], np.int64))
    if tokenizer is None:
        raise ConfigError(
            f"{arg('texts')} holds strings, and the model has no tokenizer; give token ids or tokenizer=..."
        )
    return SpokenIds.of(np.array(tokenizer(text)["input_ids"], np.int64))
