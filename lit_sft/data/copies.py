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
from functools import lru_cache

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
        exactly: bool (test documents,): only exact copies of it are sure to be found. It has fewer than 13 words, or
            it is a form, most of whose grams stand in over 100 test documents with other words.
    """

    def __init__(self, test: Sequence[str]) -> None:
        self.test = test
        keys, grams, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        before = 0
        for some in hashed_words(test):
            found, documents = some.grams(GRAM)
            keys.append(some.keys())
            grams.append(found)
            owners.append((documents + before).astype(np.uint64))
            before += len(some.texts)
        self.keys = np.concatenate(keys)
        self._keys, first, same = np.unique(self.keys, return_index=True, return_inverse=True)
        self._first = first  # of the test documents with the same words, the first stands for all
        self._stands_for = first[same]  # (test documents,)
        self.exactly = np.ones(before, dtype=bool)
        self._index(np.concatenate(grams), np.concatenate(owners))

    def _index(self, grams: np.ndarray, owners: np.ndarray) -> None:
        """Make the sorted list of the grams to look up: of each document its rarest n // 2 + 1.

        Gram and document share 64 bits, the document's number in the low ones: sorting numbers is far cheaper than
        sorting their places. The 40 bits or more that are left of a gram find candidates as well as 64.

        Args:
            grams: uint64 (grams,), with repeats.
            owners: uint64 (grams,), the test document of each.
        """
        number = np.uint64((1 << len(self.exactly).bit_length()) - 1)
        pairs = (grams & ~number) | owners
        pairs.sort()
        owners = (pairs & number).astype(np.int64)
        wanted = self._stands_for[owners] == owners
        wanted[1:] &= pairs[1:] != pairs[:-1]
        pairs, owners = pairs[wanted], owners[wanted]
        grams = pairs & ~number
        documents_with = _documents_with(grams)
        looked_up = _rarest_half(owners, documents_with, len(self.exactly))
        common = documents_with > COMMON
        count = len(self.exactly)
        grams_of, forms_of = (np.bincount(o, minlength=count) for o in (owners, owners[looked_up & common]))
        self.exactly = ((grams_of == 0) | (forms_of > 0))[self._stands_for]
        looked_up &= ~common
        self._mask, self._grams, self._owners = ~number, grams[looked_up], owners[looked_up].astype(np.int32)
        bits = int(np.clip(len(self._grams).bit_length() + 4, *SLOT_BITS))
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
            self._find_near(some, near, copies)
            others.append(copies)
            other_keys.append(keys)
        exact, near = exact[self._stands_for], near[self._stands_for]
        return Copies(exact, near & ~exact, np.concatenate(others), np.concatenate(other_keys))

    def _find_near(self, some: HashedWords, near: np.ndarray, copies: np.ndarray) -> None:
        """Mark the test documents with a near copy among ``some``, and these copies; both in place."""
        grams, documents = some.grams(GRAM)
        maybe = np.flatnonzero(self._slots[grams >> self._shift])
        grams, documents = grams[maybe] & self._mask, documents[maybe]
        first, last = (np.searchsorted(self._grams, grams, side=side) for side in ("left", "right"))
        counts = last - first
        places = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        pairs = np.unique(np.repeat(documents, counts) * len(near) + self._owners[places])
        grams_of = lru_cache(1000)(_grams)  # a document has neighbours in the list, a test document comes again
        for document, test in zip(*(part.tolist() for part in np.divmod(pairs, len(near))), strict=True):
            if not (copies[document] and near[test]):
                mine, its = grams_of(self.test[test]), grams_of(some.texts[document])
                if 2 * len(mine & its) >= len(mine):
                    copies[document] = near[test] = True


def _documents_with(grams: np.ndarray) -> np.ndarray:
    """In how many documents each gram stands, int64 (grams,), ``grams`` being sorted and once in each document."""
    is_first = np.ones(len(grams), dtype=bool)
    is_first[1:] = grams[1:] != grams[:-1]
    counts = np.diff(np.append(np.flatnonzero(is_first), len(grams)))
    return np.repeat(counts, counts)


def _rarest_half(owners: np.ndarray, documents_with: np.ndarray, documents: int) -> np.ndarray:
    """bool (grams,): of each document's n grams the n // 2 + 1 that stand in fewest documents."""
    packed = np.arange(len(owners), dtype=np.uint64)
    packed |= documents_with.clip(max=255).astype(np.uint64) << np.uint64(32)
    packed |= owners.astype(np.uint64) << np.uint64(40)
    packed.sort()
    order = packed & np.uint64(0xFFFFFFFF)
    counts = np.bincount(owners, minlength=documents)
    rank = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(owners), dtype=bool)
    chosen[order[rank <= np.repeat(counts, counts) // 2]] = True
    return chosen


def _grams(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return set(zip(*(found[i:] for i in range(GRAM)), strict=False))
