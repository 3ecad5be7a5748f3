"""Which documents are copies of test documents: exact ones, by their words, and near ones, by their 13-grams of words.

A document is a near copy of a test document when it holds at least half of the test document's distinct 13-grams (the
grams of Brown et al. 2020, "Language models are few-shot learners", appendix C; Lee et al. 2022, "Deduplicating
training data makes language models better", on why near copies count). Grams in more than 100 test documents are
boilerplate and do not count. A test document with fewer than 13 words, or whose grams are mostly boilerplate, is only
checked for exact copies. Grams shared with several documents, but fewer than half with each, do not make a copy.

The other texts are streamed, so memory depends on the test set alone: about 25 bytes per word of it, and 100 while the
index is built. Words and grams are compared by 64-bit hashes: the chance of a false copy among a million documents is
one in 10 million.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lit_sft.data.words import HashedWords, hashed_words

GRAM = 13  # words
COMMON = 100  # test documents: a gram in more of them is boilerplate
SLOT_BITS = (10, 27)  # minimum and maximum size of the table that rules out most grams that no test document has


@dataclass(frozen=True)
class Copies:
    """What was found between the test documents and some others.

    Attributes:
        exact: bool (test documents,), True if one of the others has the same words.
        near: bool (test documents,), True if one of the others is a near copy and none is exact.
        others: bool (others,), True if it is a copy of a test document, exact or near.
        keys: uint64 (others,), the keys of their words.
    """

    exact: np.ndarray
    near: np.ndarray
    others: np.ndarray
    keys: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """bool (test documents,), True if one of the others is a copy, exact or near."""
        found: np.ndarray = self.exact | self.near
        return found


class CopyFinder:
    """Finds copies of the test documents among other texts.

    Args:
        test: the test documents.

    Attributes:
        keys: uint64 (test documents,), the keys of their words.
        exactly: bool (test documents,), True if fewer than half of its grams count: only exact copies of it are found.
    """

    def __init__(self, test: Sequence[str]) -> None:
        keys, grams, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        before = 0
        for some in hashed_words(test):
            found, documents = some.grams(GRAM)
            keys.append(some.keys())
            grams.append(found)
            owners.append(documents + before)
            before += len(some.texts)
        self.keys = np.concatenate(keys)
        self._keys, first, same = np.unique(self.keys, return_index=True, return_inverse=True)
        self._first = first  # of the test documents with the same words, the first stands for all
        self._stands_for = first[same]  # (test documents,)
        self._index(np.concatenate(grams), np.concatenate(owners).astype(np.int32))

    def _index(self, grams: np.ndarray, owners: np.ndarray) -> None:
        """Build the sorted list of the grams that count, each once per document, and their number in each document.

        Args:
            grams: uint64 (grams,), with repeats.
            owners: int32 (grams,), the test document of each, rising.
        """
        order = np.argsort(grams, kind="stable")  # equal grams stay in the order of their documents
        grams, owners = grams[order], owners[order]
        wanted = self._stands_for[owners] == owners
        wanted[1:] &= (grams[1:] != grams[:-1]) | (owners[1:] != owners[:-1])
        grams, owners = grams[wanted], owners[wanted]
        _, place, documents_with = np.unique(grams, return_inverse=True, return_counts=True)
        counts = documents_with[place] <= COMMON
        grams, owners, all_of = grams[counts], owners[counts], np.bincount(owners, minlength=len(self.keys))
        self._sizes = np.bincount(owners, minlength=len(self.keys))
        searched = (self._sizes > 0) & (2 * self._sizes >= all_of)
        self.exactly = ~searched[self._stands_for]
        self._grams, self._owners = grams[searched[owners]], owners[searched[owners]]
        bits = int(np.clip(len(self._grams).bit_length() + 3, *SLOT_BITS))
        self._shift = np.uint64(64 - bits)
        self._slots = np.zeros(1 << bits, dtype=bool)
        self._slots[self._grams >> self._shift] = True

    def find(self, texts: Iterable[str]) -> Copies:
        """Find the copies among ``texts``, which are read once and not kept."""
        exact, near = np.zeros_like(self.exactly), np.zeros_like(self.exactly)
        others, other_keys = [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=np.uint64)]
        for some in hashed_words(texts):
            keys = some.keys()
            place = np.searchsorted(self._keys, keys)
            copies = (place < len(self._keys)) & (np.append(self._keys, np.uint64(0))[place] == keys)
            exact[self._first[place[copies]]] = True
            documents, tests = self._near(some)
            copies[documents] = near[tests] = True
            others.append(copies)
            other_keys.append(keys)
        exact, near = exact[self._stands_for], near[self._stands_for]
        return Copies(exact, near & ~exact, np.concatenate(others), np.concatenate(other_keys))

    def _near(self, some: HashedWords) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a document of ``some`` and a test document at least half of whose grams it has: two (pairs,)."""
        grams, documents = some.grams(GRAM)
        maybe = self._slots[grams >> self._shift]
        grams, documents = grams[maybe], documents[maybe]
        first, last = (np.searchsorted(self._grams, grams, side=side) for side in ("left", "right"))
        there = np.flatnonzero(last > first)
        _, once = np.unique(documents[there] * len(self._grams) + first[there], return_index=True)  # in a document
        documents, first, counts = (column[there[once]] for column in (documents, first, last - first))
        places = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        pairs = np.repeat(documents, counts) * len(self.keys) + self._owners[places]
        pairs, shared = np.unique(pairs, return_counts=True)
        tests = pairs % len(self.keys)
        half = 2 * shared >= self._sizes[tests]
        return pairs[half] // len(self.keys), tests[half]
