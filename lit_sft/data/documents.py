"""Documents: text, and what is known about it, before any token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

Labels = list[str] | list[tuple[str, ...]]


@dataclass(frozen=True)
class Documents:
    """Texts with their labels (names, not numbers) and groups, in the order they were read.

    ``labels``: one of each document, or, where documents have any number of labels (multi-label), a tuple of each: an
    empty one says that no label applies.
    ``groups`` names where each document comes from (a source module, an author): documents of one group never
    stand on both sides of a split.
    """

    texts: list[str]
    labels: Labels | None = None
    groups: list[str] | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "groups"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.texts):
                raise ValueError(f"{len(values)} {name} for {len(self.texts)} texts")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def multilabel(self) -> bool:
        """Whether each document has a tuple of labels."""
        return bool(self.labels) and isinstance(cast(Labels, self.labels)[0], tuple)

    def select(self, indices: Iterable[int]) -> Documents:
        """The documents at ``indices``, in that order."""
        chosen = [int(i) for i in indices]
        return Documents(
            [self.texts[i] for i in chosen],
            None if self.labels is None else cast(Labels, [self.labels[i] for i in chosen]),
            None if self.groups is None else [self.groups[i] for i in chosen],
        )

    def __add__(self, other: Documents) -> Documents:
        """Both, in that order; labels and groups stay where both have them."""

        def joined(mine: Any, theirs: Any) -> Any:
            return None if mine is None or theirs is None else mine + theirs

        return Documents(self.texts + other.texts, joined(self.labels, other.labels), joined(self.groups, other.groups))

    def unlabeled(self) -> Documents:
        """The same texts without labels: what language-model pretraining may see."""
        return Documents(self.texts, None, self.groups)


def content_keys(texts: Sequence[str]) -> np.ndarray:
    """A 64-bit key of each text, uint64 of shape (documents,): equal texts, equal keys, on every machine."""
    digests = b"".join(hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).digest() for t in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
