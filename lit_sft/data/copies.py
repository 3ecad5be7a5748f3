"""Which documents are copies of test documents: exactly, by their words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lit_sft.data.words import document_keys, hashed_words


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
    """Finds copies of the test documents among other texts, which stream by."""

    def __init__(self, test: Sequence[str]) -> None:
        self.test = test
        self.keys = document_keys(test)

    def find(self, texts: Iterable[str]) -> Copies:
        """The copies among ``texts``."""
        exact = np.zeros(len(self.test), dtype=bool)
        others = [np.zeros(0, dtype=bool)]
        for some in hashed_words(texts):
            keys = some.keys()
            exact |= np.isin(self.keys, keys)
            others.append(np.isin(keys, self.keys))
        return Copies(exact, np.zeros_like(exact), np.concatenate(others))
