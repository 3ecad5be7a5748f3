"""Documents: text, and what is known about it, before any token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from lit_sft.data.texts import Texts, joined, selected, text_key

Labels = list[str] | list[tuple[str, ...]]


@dataclass(frozen=True)
class Documents:
    """Texts with their labels (names, not numbers), in the order they were read.

    ``labels`` holds one label per document or, for multi-label data, a tuple of labels per document, which is empty if
    no label applies. The texts are a list, or :class:`lit_sft.data.texts.Texts` on disk.
    """

    texts: Sequence[str]
    labels: Labels | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise ValueError(f"{len(self.labels)} labels for {len(self.texts)} texts")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def multilabel(self) -> bool:
        """Whether each document has a tuple of labels."""
        return bool(self.labels) and isinstance(cast(Labels, self.labels)[0], tuple)

    @property
    def responses(self) -> list[str]:
        """The responses to prompts, which are stored in place of labels."""
        return cast(list[str], self.labels or [])

    def select(self, indices: Iterable[int]) -> Documents:
        """The documents at ``indices``, in that order."""
        chosen = np.fromiter(indices, dtype=np.int64)
        labels = None if self.labels is None else cast(Labels, [self.labels[i] for i in chosen])
        return Documents(selected(self.texts, chosen), labels)

    def __add__(self, other: Documents) -> Documents:
        """Concatenate both; labels are kept only if both have them."""
        labels = None if self.labels is None or other.labels is None else [*self.labels, *other.labels]
        return Documents(joined(self.texts, other.texts), cast(Labels | None, labels))


def content_keys(texts: Sequence[str]) -> np.ndarray:
    """A 64-bit key of each text, uint64 of shape (documents,): equal texts, equal keys, on every machine."""
    if isinstance(texts, Texts):
        return texts.keys
    keys = b"".join(text_key(text.encode("utf-8", "surrogatepass")) for text in texts)
    return np.frombuffer(keys, dtype="<u8").astype(np.uint64)


def bytes_of(texts: Sequence[str]) -> np.ndarray:
    """The length of each text in UTF-8, int64 of shape (documents,)."""
    if isinstance(texts, Texts):
        return texts.num_bytes
    return np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], dtype=np.int64)
