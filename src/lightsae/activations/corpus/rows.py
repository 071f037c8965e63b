"""Text to token rows: tokenise documents, join them with EOS, cut into rows without padding; exact resume.

Axes:    n rows, context tokens in a row.
Rows:    A row is BOS (where one is prepended) and then the next tokens of the corpus. Nothing is left out, nothing is
         padded; only the end of the validation split, shorter than a row, is dropped.
Resume:  The state names the chunk of documents that the next token comes from, and how many of its tokens are used up.
         Loading it tokenises that one chunk again. What is prepared ahead does not matter.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.corpus.columns import IDS_COLUMN, MASK_COLUMN
from lightsae.activations.corpus.conversation import ConversationWriter, Written
from lightsae.activations.corpus.documents import Cursor, Split, SpokenIds
from lightsae.activations.corpus.open import BUILTIN, no_text, open_documents
from lightsae.activations.corpus.token_rows import TokenRows
from lightsae.activations.corpus.tokenise import Encoded, Ids, Roles, Tokeniser
from lightsae.activations.roles import MARKUP
from lightsae.activations.settings import DataSettings
from lightsae.errors import ConfigError, CorpusError, arg
from lightsae.lm.vocabulary import Vocabulary

# The size of a chunk bounds what a resume tokenises again; it decides nothing else.
_CHUNK_DOCUMENTS = 256
_CHUNK_CHARACTERS = 1 << 17

_Readable = str | Written | NDArray[np.integer[Any]] | SpokenIds

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Chunk:
    """Consecutive documents on their way through the tokeniser."""

    cursor: Cursor
    epoch: int
    closings: list[int]  # the role of the separator after each document
    result: Callable[[], Encoded]


class RowSource:
    """Packs the documents of one split into rows.

    Made for one caller at a time, on any thread. A thread that tokenises starts at the first `take`.

    Args:
        settings: The corpus, and how rows are made of it.
        vocabulary: The token ids of the model, or of the smallest of several.
        split: `train` goes round a finite corpus for ever; `validation` ends.
        once: The training documents end too.

    Attributes:
        conversations: The documents say whose words a token is: chat messages, or ids with a mask of the assistant's.
        with_roles: Rows say whose words each token is; if not set, conversations' do.
        epoch: How often the corpus had been read through before the last token that was read.
        fingerprint: Names the corpus and tells two versions of it apart; holds no path of the machine.

    Raises:
        CorpusError: As `open_documents`; there is no text in it; or it is text, and there is no tokenizer.
        ConfigError: BOS is asked for, and the model has none.
    """

    # Read from the chunk of the state, and not yet in a row.
    _tokens: Ids
    _documents: NDArray[np.int64]
    _roles: Roles
    _rows: int
    # What a state holds.
    state_kinds: ClassVar[Mapping[str, Any]] = dict.fromkeys(
        ("fingerprint", "cursor", "epoch", "document", "used", "rows")
    )

    def __init__(self, settings: DataSettings, vocabulary: Vocabulary, split: Split, *, once: bool = False) -> None:
        self.settings, self.vocabulary = settings, vocabulary
        self.epoch = 0
        self._split, self._begins_again = split, split == "train" and not once
        self._writer: ConversationWriter | None = None
        self._source = open_documents(settings, split)
        self.fingerprint = self._source.fingerprint
        self._start = self._source.cursor()
        first = self._read_document()
        self._source.seek(self._start)
        if first is None:
            raise CorpusError(no_text(settings, split))
        self.conversations = self.with_roles = isinstance(first, Written | SpokenIds)
        is_text = isinstance(first, str | Written)
        self._tokeniser = Tokeniser(vocabulary.tokenizer, settings.num_workers) if is_text else None
        # Rows that somebody has packed already: the lengths say so.
        is_row = not is_text and len(first) == settings.context_size
        self._packed = is_row and settings.prepend_bos is None
        self._bos, self._eos = (None, None) if self._packed else (vocabulary.bos, vocabulary.eos)
        if settings.prepend_bos and self._bos is None:
            raise ConfigError(
                f"{arg('prepend_bos')} is true, but {arg('model')} has no BOS token; leave it out or say false."
            )
        if settings.prepend_bos is False:
            self._bos = None
        self._checked(np.array([token for token in (self._bos, self._eos) if token is not None], int), made_here=True)
        self._payload = settings.context_size - (self._bos is not None)
        self._in_flight: deque[_Chunk] = deque()
        self._begin_at({"cursor": self._start, "epoch": 0, "document": 0, "used": 0, "rows": 0})

    @property
    def sources(self) -> "dict[str, RowSource]":
        """Every dataset by its name; of a mixture there are several."""
        return {self.settings.text: self}

    def take(self, n: int) -> TokenRows:
        """Return the next `n` rows; fewer at the end of a split that ends, and none after it.

        Raises:
            CorpusError: The whole split is shorter than one row; a document cannot be read; the tokenizer failed.
        """
        parts: list[tuple[Ids, NDArray[np.int64], Roles]] = [(self._tokens, self._documents, self._roles)]
        have, needed = len(self._tokens), n * self._payload
        while have < needed:
            chunk = self._next_chunk()
            if chunk is None or chunk.epoch > self.epoch:
                if self._rows == 0 and have < self._payload:
                    raise CorpusError(self._too_short(have))
                if chunk is None:
                    break
                if self.epoch == 0:
                    _log.warning("The dataset has been read through once and is read again: %s", self.fingerprint)
                self.epoch = chunk.epoch
            parts.append(self._join(chunk))
            have += len(parts[-1][0])
        rows = min(n, have // self._payload)
        tokens, documents, roles = map(np.concatenate, zip(*parts, strict=True))
        shape, end = (rows, self._payload), rows * self._payload
        # Less than a row can be left over only where the documents end; it is dropped.
        kept = slice(end, None) if rows == n else slice(0)
        self._tokens, self._documents, self._roles = tokens[kept], documents[kept], roles[kept]
        self._rows += rows
        return self._with_bos(tokens[:end].reshape(shape), documents[:end].reshape(shape), roles[:end].reshape(shape))

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last `take`: small; numbers, strings, lists, dicts, None."""
        return {
            "fingerprint": self.fingerprint,
            "cursor": self._mark,
            "epoch": self.epoch,
            "document": self._mark_document,
            "used": self._chunk_length - len(self._tokens),
            "rows": self._rows,
            **({"closing": self._mark_closing} if self._mark_closing != MARKUP else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place of a `state_dict`, also one of another object with the same corpus and tokenizer.

        Raises:
            CorpusError: The state belongs to another corpus.
        """
        if state["fingerprint"] != self.fingerprint:
            raise CorpusError(
                f"{arg('dataset')} is now {self.fingerprint!r}, but the checkpoint stopped in "
                f"{state['fingerprint']!r}. Resume with the same corpus, or start a new run."
            )
        self._begin_at(state)

    def close(self) -> None:
        """End the thread that tokenises, and close files."""
        self._in_flight.clear()
        if self._tokeniser:
            self._tokeniser.close()
        self._source.close()

    def _begin_at(self, state: dict[str, Any]) -> None:
        self._in_flight.clear()
        self._source.seek(state["cursor"])
        self._reading_epoch = self.epoch = state["epoch"]
        self._mark, self._mark_document, self._document = state["cursor"], state["document"], state["document"]
        self._mark_closing = self._closing = state.get("closing", MARKUP)
        self._skip = self._chunk_length = state["used"]
        self._rows = state["rows"]
        self._tokens = np.empty(0, np.int32)
        self._documents = np.empty(0, np.int64)
        self._roles = np.empty(0, np.uint8)

    def _next_chunk(self) -> _Chunk | None:
        """Return the next chunk in order, having sent those after it to be tokenised."""
        depth = self._tokeniser.depth if self._tokeniser else 1
        while len(self._in_flight) < depth and (chunk := self._read_chunk()) is not None:
            self._in_flight.append(chunk)
        return self._in_flight.popleft() if self._in_flight else None

    def _read_chunk(self) -> _Chunk | None:
        """Read the next documents, and begin to tokenise them; None where they end."""
        cursor, documents = self._source.cursor(), self._read_documents()
        if not documents and self._begins_again:
            self._reading_epoch += 1
            self._source.seek(self._start)
            cursor, documents = self._start, self._read_documents()
            if not documents:
                raise CorpusError(no_text(self.settings, self._split))
        if not documents:
            return None
        texts = [document for document in documents if isinstance(document, str | Written)]
        if texts and self._tokeniser:
            closings = [text.closing if isinstance(text, Written) else MARKUP for text in texts]
            return _Chunk(cursor, self._reading_epoch, closings, self._tokeniser.submit(texts))
        parts = [self._unwrapped(SpokenIds.of(d)) for d in documents if isinstance(d, np.ndarray | SpokenIds)]
        ids, roles = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "roles"))
        encoded = Encoded(ids, roles, [len(part) for part in parts])
        return _Chunk(cursor, self._reading_epoch, [part.closing for part in parts], lambda: encoded)

    def _read_document(self) -> _Readable | None:
        """Return the next document, a conversation written out."""
        document, tokenizer = self._source.read(), self.vocabulary.tokenizer
        if isinstance(document, str | list) and tokenizer is None:
            raise CorpusError(
                f"{arg('dataset')} is text, and {arg('model')} comes without a tokenizer that can be read. Save one "
                f"beside its weights (tokenizer.save_pretrained), or give token ids ({IDS_COLUMN})."
            )
        if not isinstance(document, list):
            return document
        if self._writer is None:
            self._writer = ConversationWriter(tokenizer, self.settings.chat_template, self.settings.roles)
        return self._writer.write(document)

    def _read_documents(self) -> list[_Readable]:
        documents: list[_Readable] = []
        size = 0
        while len(documents) < _CHUNK_DOCUMENTS and size < _CHUNK_CHARACTERS:
            if (document := self._read_document()) is None:
                break
            documents.append(document)
            size += len(document)
        return documents

    def _checked(self, ids: NDArray[np.integer[Any]], *, made_here: bool) -> Ids:
        """Hold ids, of the data or made by the tokenizer, against the embedding."""
        size = self.vocabulary.size or 1 << 31
        wrong = (ids < 0) | (ids >= size)
        if not wrong.any():
            return ids.astype(np.int32, copy=False)
        found = f"the token id {ids[wrong][0]}, but the embedding of {arg('model')} has 0..{size - 1}"
        if made_here:
            raise CorpusError(
                f"{arg('dataset')}: the tokenizer makes {found}; add rows to it (resize_token_embeddings), or save "
                "another tokenizer beside the weights."
            )
        advice = (
            f"leave padding and labels out, or give an {MASK_COLUMN} that is 0 there"
            if ids[wrong][0] < 0
            else "give ids of the model's own tokenizer"
        )
        raise CorpusError(f"{arg('dataset')} holds {found}; {advice}.")

    def _unwrapped(self, document: SpokenIds) -> SpokenIds:
        """Return a document of ids without the BOS and EOS around it: packing puts its own."""
        ids = document.ids
        if self._packed:
            if len(ids) != self.settings.context_size:
                raise CorpusError(
                    f"{arg('dataset')}: a row has {len(ids)} ids, but the first has {arg('context_size')} "
                    f"({self.settings.context_size}). Say {arg('prepend_bos')} true or false to have them packed anew."
                )
            return document
        first = int(len(ids) > 0 and ids[0] == self._bos)
        return document.within(first, len(ids) - int(len(ids) > first and ids[-1] == self._eos))

    def _join(self, chunk: _Chunk) -> tuple[Ids, NDArray[np.int64], Roles]:
        """Return the chunk's tokens with separators, the documents' numbers, the roles; makes it that of the state."""
        encoded = chunk.result()
        ids = self._checked(encoded.ids, made_here=self._tokeniser is not None)
        self._mark, self._mark_document, self._mark_closing = chunk.cursor, self._document, self._closing
        tokens, roles = [np.empty(0, np.int32)], [np.empty(0, np.uint8)]
        runs: list[tuple[int, int]] = []  # document, tokens
        end = 0
        for length, closing in zip(encoded.lengths, chunk.closings, strict=True):
            start, end = end, end + length
            if length == 0:
                continue
            if self._eos is not None and self._document > 0:
                tokens.append(np.array([self._eos], np.int32))
                roles.append(np.array([self._closing], np.uint8))
                runs.append((self._document - 1, 1))
            tokens.append(ids[start:end])
            roles.append(encoded.roles[start:end])
            runs.append((self._document, length))
            self._document += 1
            self._closing = closing
        flat = np.concatenate(tokens)
        numbers = np.repeat(*np.array(runs, np.int64).reshape(-1, 2).T)
        self._chunk_length = len(flat)
        skip, self._skip = self._skip, 0
        return flat[skip:], numbers[skip:], np.concatenate(roles)[skip:]

    def _with_bos(self, tokens: Ids, documents: NDArray[np.int64], roles: Roles) -> TokenRows:
        if self._bos is None:
            return TokenRows(tokens, documents, roles if self.with_roles else None)
        bos, markup = np.full((len(tokens), 1), self._bos, np.int32), np.full((len(tokens), 1), MARKUP, np.uint8)
        return TokenRows(
            np.hstack([bos, tokens]),
            np.hstack([documents[:, :1], documents]),
            np.hstack([markup, roles]) if self.with_roles else None,
        )

    def _too_short(self, tokens: int) -> str:
        advice = f"take a larger corpus or a smaller {arg('context_size')}"
        if self._split == "validation" and self.settings.validation_split is None and self.settings.dataset != BUILTIN:
            advice = f"raise {arg('validation_fraction')} ({self.settings.validation_fraction}), or " + advice
        return (
            f"{arg('dataset')}: the {self._split} split has {tokens} tokens, which is shorter than one row of "
            f"{arg('context_size')} ({self.settings.context_size}); {advice}."
        )
