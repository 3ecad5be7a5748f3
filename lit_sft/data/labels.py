"""Labels as numbers: a class index of each document, or, multi-label, a column of 0 and 1 for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from lit_sft.data.documents import Documents
from lit_sft.errors import UserError

NO_LABEL = -1


def label_array(documents: Documents, index: Mapping[str, int] | None) -> np.ndarray:
    """The documents' labels as numbers.

    Args:
        documents: with labels, or without.
        index: class index of each label name; None leaves all documents without a label.

    Returns:
        int64 (documents,), class index, -1 without a label; multi-label: uint8 (documents, classes), 1 where the
        label applies.

    Raises:
        UserError: a label that ``index`` does not know.
    """
    if documents.labels is None or index is None:
        return np.full(len(documents), NO_LABEL, dtype=np.int64)
    try:
        if not documents.multilabel:
            return np.array([index[label] for label in documents.labels], dtype=np.int64)  # type: ignore[index]
        return _table([[index[label] for label in labels] for labels in documents.labels], len(index))
    except KeyError as error:
        position = next(i for i, label in enumerate(documents.labels) if error.args[0] in names_of(label))
        known = ", ".join(map(repr, index))
        what = f"label {error.args[0]!r} of document {position + 1}"
        raise UserError(f"{what} is not one of the classes: {known}") from None


def count_labels(documents: Documents) -> Counter[str]:
    """How many documents have each label."""
    return Counter(name for label in documents.labels or [] for name in names_of(label))


def label_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """How many documents have each label, int64 (classes,).

    Args:
        labels: as :func:`label_array` returns them.
        classes: the number of classes.
    """
    if labels.ndim == 2:
        counts: np.ndarray = labels.sum(0, dtype=np.int64)
        return counts
    return np.bincount(labels[labels >= 0], minlength=classes).astype(np.int64)


def to_plain(labels: np.ndarray) -> list[Any]:
    """Convert labels for JSON: for each document a class index, or the list of those that apply."""
    if labels.ndim == 1:
        return list(labels.tolist())
    return [np.flatnonzero(row).tolist() for row in labels]


def from_plain(plain: list[Any], classes: int, multilabel: bool) -> np.ndarray:
    """The inverse of :func:`to_plain`; raises an IndexError, TypeError or ValueError for any other value."""
    if not multilabel:
        return np.array(plain, dtype=np.int64).reshape(len(plain))
    return _table(plain, classes)


def _table(numbers: list[list[int]], classes: int) -> np.ndarray:
    """uint8 (documents, classes) from the classes of each document."""
    table = np.zeros((len(numbers), classes), dtype=np.uint8)
    rows = np.repeat(np.arange(len(numbers)), [len(each) for each in numbers])
    table[rows, np.fromiter((n for each in numbers for n in each), dtype=np.int64)] = 1
    return table


def names_of(label: Any) -> tuple[str, ...]:
    """The names in a document's label, each once: one, or, multi-label, any number."""
    return (label,) if isinstance(label, str) else tuple(dict.fromkeys(label))
