"""Texts as words, compared without case, punctuation and line breaks; and their hashes, many documents at a time.

Two texts are the same here when they have the same words: runs of letters, digits and marks, case-folded and composed
(NFC); an HTML line break counts as a space. A text without any word is compared as a whole, folded. In scripts without
blanks between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) each letter with its marks is a word: otherwise a
clause would be a single word, and parts of a text would never be found.

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
# First and last code points of Thai and Lao, Burmese, Khmer, Tai Le and New Tai Lue, Tai Tham, Balinese, the marks and
# kana of Japanese, ideographs (with the rarer and compatible ones), Javanese and more of Burmese, Tai Viet, kana of
# half width, old kana, and the two planes of further ideographs.
WITHOUT_BLANKS = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F)),
    *((0x3005, 0x312F), (0x31A0, 0x9FFF), (0xA980, 0xA9FF), (0xAA60, 0xAADF), (0xF900, 0xFAFF)),
    *((0xFF66, 0xFF9F), (0x1B000, 0x1B16F), (0x20000, 0x3FFFF)),
)
_LETTER, _ALONE, _ITS_MARK = 1, 2, 3  # in a word; a letter of these scripts; a mark of them; 0: between words
_OF_CHARACTERS, _OF_WORDS = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # odd, so that they have an inverse modulo 2**64


def words(text: str) -> list[str]:
    """The words that a text is compared by."""
    folded = _folded(text)
    _, starts, ends = _split(folded)
    return [folded[start:end] for start, end in zip(starts, ends, strict=True)]


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
        counts: int64 (documents,), the number of words of each.
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
    """Hash the texts in their order, some 100,000 characters at a time.

    Memory stays flat, except for a single longer document: some 43 bytes per character, 72 without blanks.
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
    characters, starts, ends = _split(joined)
    documents_end = np.cumsum([len(text) + 1 for text in folded])
    counts = np.diff(np.searchsorted(starts, documents_end), prepend=0)
    return HashedWords(texts, counts, seeded_hash(_stretches(characters, starts, ends, _OF_CHARACTERS), 0))


def _split(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The code points, uint32 (characters,), and where each word begins and ends, int64 (words,)."""
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds = np.zeros(len(characters) + 2, dtype=np.int8)
    np.take(_kinds(), characters, out=kinds[1:-1])
    before, now = kinds[:-1], kinds[1:]
    begins = (now > 0) & ((before == 0) | (now == _ALONE) | ((now == _LETTER) & (before > _LETTER)))
    return characters, np.flatnonzero(begins), np.flatnonzero((before > 0) & ((now == 0) | begins))


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
def _kinds() -> np.ndarray:
    """For each code point whether it belongs to a word, and how, int8 (code points,): letters, digits and marks do."""
    points = [chr(point) for point in range(0x110000)]
    kinds = np.array([c.isalnum() or unicodedata.category(c)[0] == "M" for c in points], dtype=np.int8)
    for first, last in WITHOUT_BLANKS:
        some = points[first : last + 1]
        kinds[first : last + 1] *= [_ITS_MARK if unicodedata.category(c)[0] == "M" else _ALONE for c in some]
    return kinds
