"""Documents with the same words as another one, within a split and between splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_sft.data.documents import Documents, content_keys
from lit_sft.data.words import document_keys


class KeyTable:
    """The keys of the words of texts (:func:`lit_sft.data.words.document_keys`), each text hashed once.

    A text is looked up by its content key, whichever split it went to; the table takes 16 bytes per text.
    """

    def __init__(self) -> None:
        self._contents, self._keys = np.zeros(0, np.uint64), np.zeros(0, np.uint64)

    def add(self, texts: Sequence[str], keys: np.ndarray) -> None:
        """Add texts whose keys are known."""
        contents, first = np.unique(np.append(self._contents, content_keys(texts)), return_index=True)
        self._contents, self._keys = contents, np.append(self._keys, keys)[first]

    def of(self, documents: Documents) -> np.ndarray:
        """The key of each document's words, uint64 (documents,)."""
        contents = content_keys(documents.texts)
        missing = np.flatnonzero(~np.isin(contents, self._contents))
        if len(missing):
            texts = documents.select(missing).texts
            self.add(texts, document_keys(texts))
        return self._keys[np.searchsorted(self._contents, contents)]


def without_copies(text: Documents, val: Documents, notes: list[str], table: KeyTable) -> Documents:
    """Drop unlabeled documents with the same words as a validation document: they would make figures too good."""
    if not len(text) or not len(val):
        return text
    copies = np.isin(table.of(text), table.of(val))
    if not copies.any():
        return text
    notes.append(f"{int(copies.sum())} unlabeled documents are copies of validation documents and were left out")
    return text.select(np.flatnonzero(~copies))


def count_repeats(
    train: Documents, val: Documents, test: Documents, extra: Documents, table: KeyTable
) -> dict[str, int]:
    """How many documents have the words of another one, as plain values.

    For each split, the documents that repeat an earlier one in it; for ``val_in_train`` and ``test_in_val``, the
    documents of the first split that also occur in the second. (The contamination gate counts copies of test documents
    in training text.)
    """
    splits = {"train": train, "unlabeled": extra, "val": val, "test": test}
    keys = {name: table.of(documents) for name, documents in splits.items()}
    found = {name: len(k) - len(np.unique(k)) for name, k in keys.items()}
    for one, other in (("val", "train"), ("test", "val")):
        found[f"{one}_in_{other}"] = int(np.isin(keys[one], keys[other]).sum())
    return found
