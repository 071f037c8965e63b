"""Which token ids a model takes, and what makes them of text."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Vocabulary:
    """The token ids of a model.

    Attributes:
        tokenizer: A transformers tokenizer; None where the model comes without one, so that the data has to be ids.
        bos: Opens a row; None: nothing does.
        eos: Ends a document; None: nothing does.
        size: Ids lie in 0..size-1, the rows of the embedding. None: not known.
    """

    tokenizer: Any | None
    bos: int | None
    eos: int | None
    size: int | None = None

    @classmethod
    def of(cls, tokenizer: Any | None, size: int | None = None) -> "Vocabulary":
        """Return that of a model which has this tokenizer."""
        return cls(tokenizer, *separators(tokenizer), size)

    @property
    def digest(self) -> str:
        """A hash of all words with their ids; empty without a tokenizer."""
        if self.tokenizer is None:
            return ""
        words = json.dumps(sorted(self.tokenizer.get_vocab().items()), ensure_ascii=False)
        return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()

    def has_words_of(self, other: "Vocabulary") -> bool:
        """Whether both tokenizers give the same ids to the same words; if neither model has one, whether they may."""
        if self.tokenizer is None or other.tokenizer is None:
            return self.tokenizer is other.tokenizer and self.size == other.size
        return bool(self.tokenizer.get_vocab() == other.tokenizer.get_vocab())


def separators(tokenizer: Any | None) -> tuple[int | None, int | None]:
    """Return the ids of a tokenizer's BOS and EOS, None where it has none; an encoder's [CLS] and [SEP] stand for them.

    Example:
        >>> from types import SimpleNamespace
        >>> separators(SimpleNamespace(bos_token_id=None, cls_token_id=7, eos_token_id=2))
        (7, 2)
    """
    bos, eos = (
        next((token for name in names if (token := getattr(tokenizer, name, None)) is not None), None)
        for names in (("bos_token_id", "cls_token_id"), ("eos_token_id", "sep_token_id"))
    )
    return bos, eos
