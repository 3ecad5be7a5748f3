"""Labeled documents in batches of similar length, under a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lit_sft.data.batches import Batch, BatchDataset, Direction
from lit_sft.data.labels import NO_LABEL
from lit_sft.data.tokens import TokenArray
from lit_sft.errors import UserError

Truncation = Literal["head", "tail", "head_tail"]
BUCKET_RATIO = 1.1
BUCKET_STEP = 4


@dataclass
class DocumentBatch(Batch):
    """Whole documents, ``<eos> tokens <eos>``, padded on the right.

    Attributes:
        input_ids: int64 (batch, time).
        attention_mask: bool (batch, time), True at real positions, both ``<eos>`` included.
        lengths: int64 (batch,), real positions of each document.
        labels: int64 (batch,), class index, -1 without a label; multi-label: int8 (batch, classes), 1 where the label
            applies, else 0, and -1 for all of a document without labels.
        indices: int64 (batch,), place of each document in the data set.
        num_tokens: real positions of the batch; a Python int, so that reading it never waits for a device.
        empty: whether its only row is a placeholder, because the batch has fewer documents than there are processes;
            also a Python value.
    """

    input_ids: Tensor
    attention_mask: Tensor
    lengths: Tensor
    labels: Tensor
    indices: Tensor
    num_tokens: int
    empty: bool = False


def truncate(ids: np.ndarray, max_length: int, how: Truncation) -> np.ndarray:
    """At most ``max_length`` of ``ids`` (tokens,): the first, the last, or the first half and the last half.

    With ``head_tail`` and an odd ``max_length`` the head is one token longer than the tail (Sun et al. 2019 keep
    both ends of long reviews, since these contain the verdict).
    """
    if len(ids) <= max_length:
        return ids
    head = {"head": max_length, "tail": 0, "head_tail": (max_length + 1) // 2}[how]
    tail_start = len(ids) - (max_length - head)
    return ids[:head] if head == max_length else np.concatenate([ids[:head], ids[tail_start:]])


def collate(
    documents: Sequence[np.ndarray],
    eos_id: int,
    pad_id: int,
    labels: np.ndarray | None = None,
    indices: np.ndarray | None = None,
) -> DocumentBatch:
    """Make a batch of documents that are truncated already, adding boundaries and padding.

    Args:
        documents: ids of each document, shape (tokens,), without boundaries.
        eos_id: id of the boundary.
        pad_id: id of padding.
        labels: int64 (batch,), or, multi-label, (batch, classes); None for no labels.
        indices: int64 (batch,); None numbers them 0, 1, ...
    """
    count = len(documents)
    lengths = np.array([len(ids) + 2 for ids in documents], dtype=np.int64)
    time = int(lengths.max(initial=2))
    input_ids = np.full((count, time), pad_id, dtype=np.int64)
    for row, ids in zip(input_ids, documents, strict=True):
        row[1 : 1 + len(ids)] = ids
    input_ids[:, 0] = eos_id
    input_ids[np.arange(count), lengths - 1] = eos_id
    return DocumentBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(np.arange(time) < lengths[:, None]),
        lengths=torch.from_numpy(lengths),
        labels=_labels(np.full(count, NO_LABEL) if labels is None else labels),
        indices=torch.from_numpy(np.arange(count) if indices is None else indices),
        num_tokens=int(lengths.sum()),
    )


def _labels(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64 if labels.ndim == 1 else np.int8, copy=False))


class DocumentDataset(BatchDataset[DocumentBatch]):
    """Every document once an epoch, in batches of nearly equal length.

    Lengths are rounded up to bounds that grow by a tenth. Each epoch, the documents within a bound are shuffled,
    batches are cut from the longest bound down so that bound times documents stays within ``max_tokens``, and
    the batches are shuffled. The bounds do not depend on the shuffling, so the number and sizes of the batches are
    the same every epoch, and schedules in steps stay correct. The cost is some 5% of padding; batches of exactly
    equal lengths would have none but would put the same documents together in every epoch.

    Without ``shuffle`` the longest batch comes first, so that memory runs out at once or never. The others follow in a
    fixed pseudo-random order, so that the first few are representative of all (``limit_val_batches``).

    Args:
        tokens: the documents.
        eos_id, pad_id: ids of the boundary and of padding.
        max_length: maximum number of tokens kept of a document, not counting its two boundaries.
        truncation: which tokens are kept: ``head``, ``tail`` or ``head_tail``.
        max_tokens: maximum number of padded positions in a batch (a longer document is a batch of its own).
        max_documents: maximum number of documents in a batch.
        seed, shuffle: arrangement of the epoch.
        direction: ``backward`` reverses the kept tokens of a document between the two boundaries; truncation comes
            first, so ``tail`` still refers to the end of the text.

    Raises:
        UserError: no documents, or an unknown truncation.
    """

    def __init__(
        self,
        tokens: TokenArray,
        eos_id: int,
        pad_id: int,
        max_length: int,
        truncation: Truncation,
        max_tokens: int,
        max_documents: int,
        seed: int,
        shuffle: bool,
        direction: Direction = "forward",
    ) -> None:
        super().__init__(tokens, seed, shuffle, (max_length, max_tokens, max_documents))
        if len(tokens) == 0:
            raise UserError("there are no documents to make batches of")
        if truncation not in ("head", "tail", "head_tail"):
            raise UserError(f"truncation {truncation!r} is unknown: use 'head', 'tail' or 'head_tail'")
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.direction = direction
        self._lengths = self._kept_lengths()  # (documents,), boundaries included
        self._bounds = _bucket_bounds(self._lengths)
        self._cuts = _cut(np.sort(self._bounds)[::-1], max_tokens, max_documents)
        self._arrange()

    def _kept_lengths(self) -> np.ndarray:
        kept: np.ndarray = np.minimum(self.tokens.lengths, self.max_length) + 2
        return kept

    def _arrange(self) -> None:
        random = self._random()
        within = random.random(len(self.tokens)) if self.shuffle else -self._lengths
        self._order = np.lexsort((within, -self._bounds))  # longest bound first; stable
        self._sequence = random.permutation(len(self)) if self.shuffle else _longest_first(len(self))

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def _members(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        cut = self._sequence[index]
        return self._order[self._cuts[cut] : self._cuts[cut + 1]]

    def __getitem__(self, index: int) -> DocumentBatch:
        members = self._members(index)[self.rank :: self.world_size]
        if len(members) == 0:  # fewer documents than processes: a placeholder that counts as nothing
            nothing = np.array([-1], dtype=np.int64)
            labels = np.full((1, *self.tokens.labels.shape[1:]), NO_LABEL)
            return replace(collate([nothing[:0]], self.eos_id, self.pad_id, labels, nothing), empty=True)
        documents = [truncate(self.tokens.document(i), self.max_length, self.truncation) for i in members]
        if self.direction == "backward":  # after truncation: head and tail refer to the text as written
            documents = [ids[::-1] for ids in documents]
        return collate(documents, self.eos_id, self.pad_id, self.tokens.labels[members], members)

    def documents(self, index: int) -> np.ndarray:
        return np.sort(self._members(index))

    def padding_share(self) -> float:
        """Padding as a share of all positions of the epoch, in [0, 1)."""
        padded = sum(len(m) * int(self._lengths[m].max()) for m in map(self._members, range(len(self))))
        return 1 - int(self._lengths.sum()) / padded


def _longest_first(count: int) -> np.ndarray:
    """0, then 1 to ``count`` - 1 in a pseudo-random order that depends on ``count`` alone."""
    return np.concatenate([[0], 1 + np.random.default_rng(0).permutation(count - 1)])


def _bucket_bounds(lengths: np.ndarray) -> np.ndarray:
    """Each length rounded up to the next bound, int64 (documents,); no bound is above the longest length."""
    longest = int(lengths.max())
    bounds = [BUCKET_STEP]
    while bounds[-1] < longest:
        bounds.append(max(bounds[-1] + BUCKET_STEP, int(bounds[-1] * BUCKET_RATIO)))
    rounded: np.ndarray = np.minimum(np.array(bounds)[np.searchsorted(bounds, lengths)], longest)
    return rounded


def _cut(bounds: np.ndarray, max_tokens: int, max_documents: int) -> np.ndarray:
    """Borders of the batches over documents sorted by falling bound, int64 (batches + 1,)."""
    cuts = [0]
    while cuts[-1] < len(bounds):
        fitting = min(max_documents, max_tokens // int(bounds[cuts[-1]]))
        cuts.append(min(len(bounds), cuts[-1] + max(1, fitting)))
    return np.array(cuts)
