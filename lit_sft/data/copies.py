"""Which documents are copies of test documents: exact ones, by their words, and near ones, by their 13-grams of words.

A document is a near copy of a test document when it holds at least half of the test document's distinct 13-grams (the
grams of Brown et al. 2020, "Language models are few-shot learners", appendix C; Lee et al. 2022, "Deduplicating
training data makes language models better", on why near copies count). Test documents of fewer than 13 words are
compared exactly. What a test document shares with several documents, less than half with each, is not counted.

Other texts stream by, so memory follows the test set alone: about 30 bytes for each of its words, 100 while the index
is made. Of a test document of n distinct grams that shares half of them, any n // 2 + 1 of its grams have a shared one
among them (the prefix filter of set-similarity joins; Chaudhuri, Ganti & Kaushik 2006), so only these are looked up,
its rarest; then the pairs found are compared word by word, so that no collision of hashes makes a near copy. Exact
ones are as sure as 64 bits: among a million documents a false one has a chance of one in 10 million.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lit_sft.data.words import HashedWords, hashed_words, words

GRAM = 13  # words
COMMON = 100  # test documents: a gram in more of them is a form's, and no document is looked up by it
SLOT_BITS = (10, 27)  # least and most, of the table that tells for most grams that they are none of these


@dataclass(frozen=True)
class Copies:
    """What was found between the test documents and some others.

    Attributes:
        exact: bool (test documents,), one of the others has the same words.
        near: bool (test documents,), not that, but one of the others is a near copy.
        others: bool (others,), which of them are copies of a test document, exact or near.
    """

    exact: np.ndarray
    near: np.ndarray
    others: np.ndarray


class CopyFinder:
    """Finds copies of the test documents among other texts.

    Args:
        test: the test documents.

    Attributes:
        exactly: bool (test documents,): only exact copies of it are sure to be found. It has fewer than 13 words, or
            it is a form, most of whose grams stand in over 100 test documents with other words.
    """

    def __init__(self, test: Sequence[str]) -> None:
        self.test = test
        keys, grams, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
        before = 0
        for some in hashed_words(test):
            found, documents = some.grams(GRAM)
            keys.append(some.keys())
            grams.append(found)
            owners.append((documents + before).astype(np.int32))
            before += len(some.texts)
        self._keys, first, same = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
        self._first = first  # of the test documents with the same words, the first stands for all
        self._stands_for = first[same]  # (test documents,)
        self.exactly = np.ones(before, dtype=bool)
        self._index(np.concatenate(grams), np.concatenate(owners))

    def _index(self, grams: np.ndarray, owners: np.ndarray) -> None:
        """Make the sorted list of the grams to look up: of each document its rarest n // 2 + 1.

        Args:
            grams: uint64 (grams,), with repeats.
            owners: int32 (grams,), the test document of each, ascending.
        """
        order = np.argsort(grams, kind="stable")  # owners stay ascending within a gram
        grams, owners = grams[order], owners[order]
        del order
        wanted = self._stands_for[owners] == owners
        wanted[1:] &= (grams[1:] != grams[:-1]) | (owners[1:] != owners[:-1])
        grams, owners = grams[wanted], owners[wanted]
        documents_with = _documents_with(grams)
        looked_up = _rarest_half(owners, documents_with, len(self.exactly))
        common = documents_with > COMMON
        has_grams = np.isin(np.arange(len(self.exactly)), owners)
        is_form = np.isin(np.arange(len(self.exactly)), owners[looked_up & common])
        self.exactly = (~has_grams | is_form)[self._stands_for]
        looked_up &= ~common
        self._grams, self._owners = grams[looked_up], owners[looked_up]
        bits = int(np.clip(len(self._grams).bit_length() + 4, *SLOT_BITS))
        self._shift = np.uint64(64 - bits)
        self._slots = np.zeros(1 << bits, dtype=bool)
        self._slots[self._grams >> self._shift] = True

    def find(self, texts: Iterable[str]) -> Copies:
        """The copies among ``texts``, which are read once and let go."""
        exact, near = np.zeros_like(self.exactly), np.zeros_like(self.exactly)
        others = [np.zeros(0, dtype=bool)]
        for some in hashed_words(texts):
            keys = some.keys()
            place = np.searchsorted(self._keys, keys)
            copies = (place < len(self._keys)) & (np.append(self._keys, np.uint64(0))[place] == keys)
            exact[self._first[place[copies]]] = True
            self._find_near(some, near, copies)
            others.append(copies)
        exact, near = exact[self._stands_for], near[self._stands_for]
        return Copies(exact, near & ~exact, np.concatenate(others))

    def _find_near(self, some: HashedWords, near: np.ndarray, copies: np.ndarray) -> None:
        """Mark the test documents with a near copy among ``some``, and these copies; both in place."""
        grams, documents = some.grams(GRAM)
        maybe = np.flatnonzero(self._slots[grams >> self._shift])
        grams, documents = grams[maybe], documents[maybe]
        first, last = (np.searchsorted(self._grams, grams, side=side) for side in ("left", "right"))
        counts = last - first
        places = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        pairs = np.unique(np.repeat(documents, counts) * len(near) + self._owners[places])
        for document, test in zip(*(part.tolist() for part in np.divmod(pairs, len(near))), strict=True):
            if not (copies[document] and near[test]) and _is_near(self.test[test], some.texts[document]):
                copies[document] = near[test] = True


def _documents_with(grams: np.ndarray) -> np.ndarray:
    """In how many documents each gram stands, int64 (grams,), ``grams`` being sorted and once in each document."""
    is_first = np.ones(len(grams), dtype=bool)
    is_first[1:] = grams[1:] != grams[:-1]
    counts = np.diff(np.append(np.flatnonzero(is_first), len(grams)))
    return np.repeat(counts, counts)


def _rarest_half(owners: np.ndarray, documents_with: np.ndarray, documents: int) -> np.ndarray:
    """bool (grams,): of each document's n grams the n // 2 + 1 that stand in fewest documents."""
    order = np.argsort(owners.astype(np.int64) * 256 + documents_with.clip(max=255), kind="stable")
    counts = np.bincount(owners, minlength=documents)
    rank = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(owners), dtype=bool)
    chosen[order[rank <= np.repeat(counts, counts) // 2]] = True
    return chosen


def _is_near(test: str, other: str) -> bool:
    """Whether ``other`` holds half of the distinct grams of ``test``, which has one at least."""
    mine = _grams(test)
    return 2 * len(mine & _grams(other)) >= len(mine)


def _grams(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return set(zip(*(found[i:] for i in range(GRAM)), strict=False))
