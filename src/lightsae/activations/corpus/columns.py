"""What is read of a record: text, a conversation, or token ids with masks beside them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from lightsae.activations.corpus.documents import Conversation, Document, SpokenIds
from lightsae.activations.roles import ASSISTANT, OTHER, TEXT
from lightsae.errors import CorpusError, arg, did_you_mean

IDS_COLUMN = "input_ids"
MASK_COLUMN = "attention_mask"
# As `apply_chat_template(return_assistant_tokens_mask=True)` calls it.
ASSISTANT_COLUMN = "assistant_masks"
MESSAGES_COLUMN = "messages"
# Records that a column is looked for in, where a file has no header that names its columns.
_LOOKED_THROUGH = 1000


@dataclass(frozen=True)
class Columns:
    """The columns that make documents.

    Attributes:
        document: Text, messages, or lists of token ids.
        mask: Says which of the ids are no padding; None: all of them.
        assistant: Says which of the ids are the assistant's; None: nobody says it.
    """

    document: str
    mask: str | None = None
    assistant: str | None = None

    @classmethod
    def choose(cls, columns: Iterable[str], text_column: str, where: str) -> "Columns":
        """Return `text_column`; where the default `text` does not exist, `input_ids`, or `messages`.

        Raises:
            CorpusError: The column does not exist.
        """
        columns = list(columns)
        fallbacks = (IDS_COLUMN, MESSAGES_COLUMN) if text_column == "text" else ()
        for name in (text_column, *fallbacks):
            if name in columns:
                return cls(name, *(mask if mask in columns else None for mask in (MASK_COLUMN, ASSISTANT_COLUMN)))
        known = ", ".join(map(repr, sorted(columns))) or "no columns"
        raise CorpusError(
            f"{arg('text_column')} is {text_column!r}, but {where} has {known:.300}."
            + did_you_mean(text_column, columns)
        )

    @classmethod
    def of_records(cls, records: Iterable[Any], text_column: str, where: str) -> "Columns | None":
        """Return what the first record says that has such a column; None where there are no records.

        Raises:
            CorpusError: None of the first records has one.
        """
        columns: dict[str, None] = {}
        record = None
        for record in islice(records, _LOOKED_THROUGH):
            if isinstance(record, dict):
                try:
                    return cls.choose(record, text_column, where)
                except CorpusError:
                    columns |= dict.fromkeys(record)
        if record is None:
            return None
        if not columns:
            raise CorpusError(
                f"{arg('dataset')}: {where} holds {type(record).__name__} values, not objects with a {text_column!r} "
                "in them."
            )
        return cls.choose(columns, text_column, where)

    @property
    def names(self) -> list[str]:
        return [name for name in (self.document, self.mask, self.assistant) if name is not None]

    def document_of(self, record: Mapping[str, Any], where: str) -> Document | None:
        """Return the document that a record holds, or None where it is missing or blank.

        Raises:
            CorpusError: The value is neither text nor messages nor a list of token ids, or a mask does not fit.
        """
        value = record.get(self.document)
        if value is None:
            return None
        if isinstance(value, str):
            return as_encodable(value) if value.strip() else None
        if isinstance(value, list | tuple | np.ndarray):
            if len(value) == 0:
                return None
            if isinstance(value[0], dict):
                return self._conversation(value, where)
            if (ids := _ids(value)) is not None:
                return self._tokens(ids, record, where)
        raise CorpusError(
            f"{arg('text_column')} is {self.document!r}, which holds {type(value).__name__} values in {where}; "
            "name a column of text, of messages, or of lists of token ids."
        )

    def _tokens(self, ids: NDArray[np.integer[Any]], record: Mapping[str, Any], where: str) -> Document | None:
        kept = _mask(self.mask, ids, record, where)
        said = _roles(self.assistant, ids, record, where)
        if kept is None or (kept := kept.astype(bool)).all():
            return ids if said is None else SpokenIds(ids, said)
        rank_zero_warn(f"What the {MASK_COLUMN} in {where} says is padding is in no row.")
        if not kept.any():
            return None
        return ids[kept] if said is None else SpokenIds(ids[kept], said[kept])

    def _conversation(self, value: Iterable[Any], where: str) -> Conversation:
        messages = []
        for message in value:
            if not isinstance(message, dict) or "role" not in message or "content" not in message:
                raise CorpusError(
                    f"{arg('text_column')} is {self.document!r}, and a message in {where} is no object with a role "
                    "and a content."
                )
            messages.append({**message, "content": _content(message["content"])})
        return messages


def documents_of(records: Iterable[Any], first: int, columns: Columns, where: str) -> Iterator[tuple[Document, int]]:
    """Yield the documents among records, which are numbered from `first`, each with the number after it."""
    for number, record in enumerate(records, start=first):
        if isinstance(record, dict) and (document := columns.document_of(record, where)) is not None:
            yield document, number + 1


def as_encodable(text: str) -> str:
    """Return the text without halves of surrogate pairs, which JSON can hold and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _ids(value: Any) -> NDArray[np.integer[Any]] | None:
    """Return a list of token ids, of 32 bits if they fit; None where it is none."""
    try:
        ids = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        return None
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        return None
    bits = np.iinfo(np.int32)
    if ids.min() >= bits.min and ids.max() <= bits.max:
        return ids.astype(np.int32)
    # Such ids are refused by those who know the vocabulary; they must not become others before.
    return ids.clip(max=np.iinfo(np.int64).max).astype(np.int64)


def _mask(
    column: str | None, ids: NDArray[np.integer[Any]], record: Mapping[str, Any], where: str
) -> NDArray[np.object_] | None:
    """Return what a record says beside each of its ids; None where it says nothing."""
    value = None if column is None else record.get(column)
    if value is None:
        return None
    mask = np.asarray(value, dtype=object)
    if mask.shape != ids.shape:
        raise CorpusError(
            f"{arg('dataset')}: an {column} in {where} has {mask.size} entries, and the ids beside it are {ids.size}."
        )
    return mask


def _roles(
    column: str | None, ids: NDArray[np.integer[Any]], record: Mapping[str, Any], where: str
) -> NDArray[np.uint8] | None:
    """Return whose words each id is by a mask of the assistant's; None where there is no such column."""
    if column is None:
        return None
    if (mask := _mask(column, ids, record, where)) is None:
        return np.full(len(ids), TEXT, np.uint8)
    if len(wrong := mask[~np.isin(mask, (0, 1))]):
        raise CorpusError(
            f"{arg('dataset')}: an {column} in {where} holds {wrong[0]!r}; write 1 where the assistant speaks, else 0."
        )
    return np.where(mask.astype(bool), ASSISTANT, OTHER).astype(np.uint8)


def _content(content: Any) -> str:
    """Return a message's text: of a list of parts, that of those which have some."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(text for text in texts if text and isinstance(text, str))
    return as_encodable(content) if isinstance(content, str) else ""
