"""Concepts that any text has: what the characters of a token are, and with which letter a word begins.

Axes: T tokens, V vocabulary, C concepts.

Words that begin with a letter are kinds of `first_letter.X`: the hierarchy in which absorption was first seen
(arXiv:2409.14507), where a latent of the letter stays silent at words that have a latent of their own.
"""

import string
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lightsae.analysis.concepts.truth import Truth
from lightsae.analysis.labels.concepts import spoken
from lightsae.analysis.reading.text import TextRows

# Of each letter, so many of the most frequent words are concepts, if they stand in the text so often.
_WORDS, _LEAST = 8, 50
_LONGEST = 8
FIRST_LETTER = "first_letter"


def character_truth(rows: TextRows, texts: Sequence[str]) -> Truth:
    """Return what every token of a text is made of.

    Args:
        rows: The text.
        texts: (V,) what each token says.
    """
    said = spoken(texts).tolist()
    tokens = rows.tokens.ravel().astype(np.int64)
    begins = _begin_words(rows, said)
    of_vocabulary = [_classes(text) for text in said]
    words = [_word(text) for text in said]
    counts = np.bincount(tokens[begins], minlength=len(said))
    kept = _most_frequent(words, counts)
    of_words = [_letters(word, word in kept) for word in words]
    names = sorted({name for many in (*of_vocabulary, *of_words) for name in many} | {"word.begins", "word.goes_on"})
    place = {name: number for number, name in enumerate(names)}
    anywhere, at_begins = (_table(many, place) for many in (of_vocabulary, of_words))
    marks = anywhere[tokens] + at_begins[tokens].multiply(begins[:, None].astype(np.int32)).tocsr()
    lettered = np.array([bool(word) for word in words])[tokens]
    of_place = np.where(begins & lettered, place["word.begins"], place["word.goes_on"])
    where = np.flatnonzero(lettered)
    marks += sparse.csr_array((np.ones(len(where), np.int32), (where, of_place[where])), marks.shape)
    marks = marks.tocoo()
    concepts, firsts = marks.col.astype(np.int64), marks.row.astype(np.int64)
    return Truth.of(names, concepts, firsts, firsts + 1, np.array([bool(text) for text in said])[tokens])


def _begin_words(rows: TextRows, said: Sequence[str]) -> NDArray[np.bool_]:
    """Return which tokens begin a word: no letter, digit or underscore stands right before their first sign."""
    leads = np.array([not text[:1].strip() for text in said])
    goes_on = np.array([text[-1:].isalnum() or text[-1:] == "_" for text in said])
    tokens, documents = rows.tokens.ravel(), rows.documents.ravel()
    before = np.r_[False, goes_on[tokens[:-1]] & (documents[:-1] == documents[1:])]
    # At a row's start nothing is known of what stood before, unless the row before it is here.
    starts = np.arange(0, tokens.size, rows.tokens.shape[1])
    before[starts[1:]] &= np.diff(rows.numbers) == 1
    return np.asarray(leads[tokens] | ~before)


def _classes(text: str) -> list[str]:
    """Return what a token is, whatever stands beside it."""
    bare = text.strip()
    if not text:
        return []
    if not bare:
        return ["space.with_newline" if "\n" in text else "space.only", f"length.{min(len(text), _LONGEST)}"]
    names = [f"length.{min(len(bare), _LONGEST)}"]
    if text[0] == " ":
        names.append("space_before")
    if bare.isdigit():
        names.append(f"digits.{min(len(bare), 4)}")
    elif bare.isalpha():
        case = "lower" if bare.islower() else "upper" if bare.isupper() else "title" if bare.istitle() else "mixed"
        names.append(f"letters.{case}")
    elif not any(sign.isalnum() for sign in bare):
        kind = "ascii" if bare.isascii() else "other"
        names.append(f"signs.{kind}.{'one' if len(bare) == 1 else 'several'}")
    else:
        names.append("letters_and_others")
    if not bare.isascii():
        names.append("beyond_ascii")
    return names


def _word(text: str) -> str:
    """Return the word that a token is or begins, in lower case, if it begins with a letter from a to z."""
    bare = text.strip().lower()
    return bare if bare[:1] and bare[0] in string.ascii_lowercase and bare.isalpha() else ""


def _letters(word: str, is_frequent: bool) -> list[str]:
    letter = f"{FIRST_LETTER}.{word[:1]}"
    return [] if not word else [letter, f"{letter}.{word}"] if is_frequent else [letter]


def _most_frequent(words: Sequence[str], counts: NDArray[np.int64]) -> frozenset[str]:
    of_word: dict[str, int] = {}
    for word, count in zip(words, counts.tolist(), strict=True):
        if word and count:
            of_word[word] = of_word.get(word, 0) + count
    kept: list[str] = []
    for letter in string.ascii_lowercase:
        frequent = sorted((-count, word) for word, count in of_word.items() if word[0] == letter and count >= _LEAST)
        kept += [word for _, word in frequent[:_WORDS]]
    return frozenset(kept)


def _table(names_of: Sequence[Sequence[str]], place: dict[str, int]) -> sparse.csr_array:
    pairs = [(row, place[name]) for row, names in enumerate(names_of) for name in names]
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    shape = (len(names_of), len(place))
    return sparse.csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape)
