"""Texts as words, compared without case, punctuation and line breaks; and their hashes, many documents at a time.

Two texts are the same here when they have the same words: runs of letters, digits and marks, case-folded and composed
(NFC); an HTML line break counts as a space. A text without any word stands for itself, folded. Not covered: a script
without blanks has long words, so that parts of its texts are rarely found.

:func:`hashed_words` does the same in NumPy, over the code points of some 100,000 characters at once. A word's hash
is a polynomial of its code points modulo 2**64, mixed; sums over a stretch come from differences of running sums
(Karp & Rabin 1987, "Efficient randomized pattern-matching algorithms"). That is some 20 times as fast as a
regular expression and a set, and 64 bits wide.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from lit_sft.data.documents import content_keys
from lit_sft.data.splits import seeded_hash

CHARACTERS_AT_ONCE = 1 << 17
_BREAK = re.compile(r"<br\s*/?>")
_OF_CHARACTERS, _OF_WORDS = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # odd, so that they have an inverse modulo 2**64


def words(text: str) -> list[str]:
    """The words that a text is compared by."""
    return "".join(c if _is_in_word()[ord(c)] else " " for c in _folded(text)).split()


def normalized(text: str) -> str:
    """The words joined by blanks; the text itself, folded, where it has none."""
    return " ".join(words(text)) or _folded(text).strip()


def _folded(text: str) -> str:
    folded = text.casefold() if text.isascii() else unicodedata.normalize("NFC", text.casefold())
    return _BREAK.sub(" ", folded) if "<br" in folded else folded


@dataclass(frozen=True)
class HashedWords:
    """The words of some documents, one document after another.

    Attributes:
        texts: the documents themselves.
        counts: int64 (documents,), their words.
        hashes: uint64 (all words,).
    """

    texts: list[str]
    counts: np.ndarray
    hashes: np.ndarray

    def keys(self) -> np.ndarray:
        """A hash of each document's words in their order, uint64 (documents,): equal words, equal keys."""
        ends = np.cumsum(self.counts)
        keys = _stretches(self.hashes, ends - self.counts, ends, _OF_WORDS)
        for empty in np.flatnonzero(self.counts == 0):
            keys[empty] = content_keys([normalized(self.texts[empty])])[0]
        return keys

    def grams(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """A hash of every ``size`` words in a row within a document, uint64 (grams,), and that document, (grams,)."""
        documents = np.repeat(np.arange(len(self.counts)), self.counts)
        starts = np.flatnonzero(documents[: max(len(documents) - size + 1, 0)] == documents[size - 1 :])
        return _stretches(self.hashes, starts, starts + size, _OF_WORDS), documents[starts]


def hashed_words(texts: Iterable[str]) -> Iterator[HashedWords]:
    """The texts in their order, as many at a time as make some 100,000 characters.

    Memory stays flat, but for a single longer document: some 43 bytes a character.
    """
    some: list[str] = []
    size = 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size >= CHARACTERS_AT_ONCE:
            yield _hashed(some)
            some, size = [], 0
    if some:
        yield _hashed(some)


def document_keys(texts: Iterable[str]) -> np.ndarray:
    """A 64-bit key of each text's words, uint64 (documents,)."""
    return np.concatenate([np.zeros(0, dtype=np.uint64), *(some.keys() for some in hashed_words(texts))])


def _hashed(texts: list[str]) -> HashedWords:
    folded = [_folded(text) for text in texts]
    joined = " ".join([*folded, ""])  # a blank after each, so that no word reaches into the next document
    characters = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    inside = np.zeros(len(characters) + 1, dtype=np.int8)
    np.take(_is_in_word(), characters, out=inside[1:])
    change = np.diff(inside)  # (characters,): 1 where a word begins, -1 one past its end; the last is a blank
    starts, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    documents_end = np.cumsum([len(text) + 1 for text in folded])
    counts = np.diff(np.searchsorted(starts, documents_end), prepend=0)
    return HashedWords(texts, counts, seeded_hash(_stretches(characters, starts, ends, _OF_CHARACTERS), 0))


def _stretches(values: np.ndarray, starts: np.ndarray, ends: np.ndarray, base: int) -> np.ndarray:
    """The polynomial in ``base`` of ``values[start:end]`` for each stretch, modulo 2**64: uint64 (stretches,)."""
    powers, inverse = _powers(base, len(values)), _powers(pow(base, -1, 1 << 64), len(values))
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    found: np.ndarray = (sums[ends] - sums[starts]) * inverse[starts]
    return found


def _powers(base: int, count: int) -> np.ndarray:
    """``base`` to the power of 0, 1, ... modulo 2**64: uint64, more than ``count`` of them."""
    usual = 4 * CHARACTERS_AT_ONCE
    return _powers_up_to(base, usual) if count < usual else _powers_up_to.__wrapped__(base, count + 1)


@cache
def _powers_up_to(base: int, count: int) -> np.ndarray:
    table = np.full(count, base, dtype=np.uint64)
    table[0] = 1
    table = np.multiply.accumulate(table)
    return table


@cache
def _is_in_word() -> np.ndarray:
    """For each code point whether it belongs to a word, int8 (code points,): letters, digits and marks."""
    points = map(chr, range(0x110000))
    return np.array([point.isalnum() or unicodedata.category(point)[0] == "M" for point in points], dtype=np.int8)
