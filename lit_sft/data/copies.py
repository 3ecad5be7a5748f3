"""Which documents are copies of test documents: exact ones, by their words, and near ones, by their 13-grams of words.

A document is a near copy of a test document when it holds at least half of the test document's distinct 13-grams (the
grams of Brown et al. 2020, "Language models are few-shot learners", appendix C; Lee et al. 2022, "Deduplicating
training data makes language models better", on why near copies count). Grams that stand in over 100 test documents are
a form's and don't count; test documents of fewer than 13 words, or most of whose grams are a form's, are compared
exactly. What a test document shares with several documents, less than half with each, is not counted.

Other texts stream by, so memory follows the test set alone: about 25 bytes for each of its words, 100 while the index
is made. Words and grams are compared by hashes of 64 bits: among a million documents a false copy has a chance of one
in 10 million.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lit_sft.data.words import HashedWords, hashed_words

GRAM = 13  # words
COMMON = 100  # test documents: a gram in more of them is a form's
SLOT_BITS = (10, 27)  # least and most, of the table that tells for most grams that no test document has them


@dataclass(frozen=True)
class Copies:
    """What was found between the test documents and some others.

    Attributes:
        exact: bool (test documents,), one of the others has the same words.
        near: bool (test documents,), not that, but one of the others is a near copy.
        others: bool (others,), which of them are copies of a test document, exact or near.
        keys: uint64 (others,), the keys of their words.
    """

    exact: np.ndarray
    near: np.ndarray
    others: np.ndarray
    keys: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """bool (test documents,), one of the others is a copy, exact or near."""
        found: np.ndarray = self.exact | self.near
        return found


class CopyFinder:
    """Finds copies of the test documents among other texts.

    Args:
        test: the test documents.

    Attributes:
        keys: uint64 (test documents,), the keys of their words.
        exactly: bool (test documents,): only exact copies of it are found, as less than half of its grams count.
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
        """Make the sorted list of the grams that count, each once a document, and how many of them each document has.

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
        """The copies among ``texts``, which are read once and let go."""
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
        """Which of ``some`` hold half of which test documents' grams: (pairs,) of either."""
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
