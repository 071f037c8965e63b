"""The truth about a text: what Python's own parser says of it, what its characters are, whose words it is in
conversations, or what a file says.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.roles import ROLES, among
from lightsae.analysis.concepts.characters import character_truth
from lightsae.analysis.concepts.documents import DocumentText, documents_of
from lightsae.analysis.concepts.files import ConceptFile
from lightsae.analysis.concepts.python.lexical import mark_tokens
from lightsae.analysis.concepts.python.lines import mark_lines
from lightsae.analysis.concepts.python.source import parse
from lightsae.analysis.concepts.python.statements import mark_structure
from lightsae.analysis.concepts.truth import Ints, Marks, Truth
from lightsae.analysis.reading.text import TextRows
from lightsae.errors import CorpusError, arg
from lightsae.lm import LanguageModel
from lightsae.lm.model import vocabulary_of

Mark = Callable[[DocumentText, Marks], int]
# A text is Python if so much of it parses.
_SHARE_OF_PYTHON = 0.5


def said_by(model: LanguageModel) -> list[str]:
    """Return what each token id of a model adds to a document's text, (V,): special tokens add nothing."""
    special = set(model.tokenizer.all_special_ids)
    return ["" if number in special else text for number, text in enumerate(vocabulary_of(model))]


def read_truth(
    rows: TextRows,
    texts: Sequence[str],
    report: Callable[[int], None],
    told: ConceptFile | None = None,
    roles: Sequence[str] | None = None,
) -> Truth:
    """Return what is known of a text.

    Args:
        rows: The text.
        texts: (V,) what each token says.
        report: Told how many tokens are done.
        told: The concepts of a file; None: Python's, if the text is Python, those of its characters, and those of
            conversations.
        roles: Those whose tokens count; None: all.

    Raises:
        CorpusError: The text has none of the file's documents.
    """
    if told is not None:
        truth = marked(rows, texts, told.mark, report)
        if not truth.known.any():
            raise CorpusError(
                f"{arg('concepts')} is {told.path!r}, and the held-out text has none of its documents; name "
                f"the file as {arg('dataset')} and {arg('validation_split')} too."
            )
        return truth
    characters = character_truth(rows, texts)
    if (speakers := role_truth(rows, characters.known, roles)) is not None:
        characters = characters.beside(speakers)
    python = marked(rows, texts, mark_python, report)
    is_python = python.known.sum() >= _SHARE_OF_PYTHON * characters.known.sum()
    return python.beside(characters) if is_python else characters


def mark_python(document: DocumentText, marks: Marks) -> int:
    """Mark a document of Python source; return how many of its characters were read: 0 if it is no Python."""
    source = parse(document.text)
    if source is None:
        return 0
    mark_tokens(source, marks)
    mark_lines(source, marks)
    try:
        mark_structure(source, marks)
    except RecursionError:
        # Deeper than it can be walked: what was marked belongs to a text of which nothing is known.
        return 0
    return source.end


def role_truth(rows: TextRows, known: NDArray[np.bool_], roles: Sequence[str] | None) -> Truth | None:
    """Return whose words each token is, as concepts `role_user`, ...; None where the tokens that count have one role.

    Args:
        rows: The text.
        known: (T,) which tokens say something.
        roles: Those whose tokens count; None: all.
    """
    if rows.roles is None:
        return None
    codes = rows.roles.ravel()
    there = np.unique(codes[among(codes, roles)])
    if len(there) < 2:
        return None
    tokens = np.flatnonzero(np.isin(codes, there))
    # Not a kind of one concept `role`, which would hold everywhere.
    names = [f"role_{ROLES[code]}" for code in there.tolist()]
    return Truth.of(names, np.searchsorted(there, codes[tokens]), tokens, tokens + 1, known)


def marked(rows: TextRows, texts: Sequence[str], mark: Mark, report: Callable[[int], None]) -> Truth:
    """Return the truth that marks of documents give.

    Args:
        rows: The text.
        texts: (V,) what each token says.
        mark: Marks a document, and returns how many of its characters it knows about.
        report: Told how many tokens are done.
    """
    marks, known = Marks(), np.zeros(rows.n_tokens, np.bool_)
    parts: list[Ints] = []
    for document in documents_of(rows, texts):
        end = mark(document, marks)
        of_document = marks.take()
        if end:
            first, last = document.tokens_at(of_document[:, 1], of_document[:, 2])
            parts.append(np.stack([of_document[:, 0], first, last], 1))
            _, read = document.tokens_at(np.zeros(1, np.int64), np.array([end]))
            stretch = slice(document.first, int(read[0]))
            known[stretch] = document.speaks[: stretch.stop - stretch.start]
        report(document.first + len(document.pieces))
    table = np.concatenate(parts) if parts else np.empty((0, 3), np.int64)
    return Truth.of(list(marks.names), table[:, 0], table[:, 1], table[:, 2], known)
