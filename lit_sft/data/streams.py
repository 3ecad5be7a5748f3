"""Unlabeled text as contiguous streams, for truncated back-propagation through time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_sft.data.batches import Batch, BatchDataset, Direction
from lit_sft.data.tokens import TokenArray
from lit_sft.errors import UserError

IGNORED = -100  # cross-entropy's ignore_index


@dataclass
class StreamBatch(Batch):
    """The next stretch of every lane.

    Attributes:
        input_ids: int64 (batch, time); the pad id past the end of the text.
        targets: int64 (batch, time), the token that follows each input; -100 past the end.
        attention_mask: bool (batch, time), False past the end (only ever at the end of the last lanes).
        first: whether an epoch starts here, so that the carried state must be dropped.
        num_tokens: real targets in the batch; a Python int, so that reading it never waits for a device.
        rate: factor on the learning rate of the step that learns from it.
    """

    input_ids: Tensor
    targets: Tensor
    attention_mask: Tensor
    first: bool
    num_tokens: int
    rate: float = 1.0


class StreamDataset(BatchDataset[StreamBatch]):
    """The whole corpus as one text, cut into ``batch_size`` lanes that are read side by side.

    The text of an epoch is ``<eos> doc <eos> doc <eos> ... doc <eos>``, documents in an order drawn from
    (seed, epoch). Every token and every closing ``<eos>`` is a target exactly once an epoch. Lane ``l`` holds
    the positions ``[l * lane_length, (l + 1) * lane_length)``, and batch ``i`` goes on in each lane where
    batch ``i - 1`` stopped, so a hidden state may be carried from batch to batch.

    A lane starts in the middle of a document and runs over document ends: the model sees ``<eos>`` and learns
    to forget there. Resetting the state at each end instead would need a mask at every step, which the fused
    LSTM does not take. Nothing is copied: a batch looks its tokens up in the mapped array. Processes that share
    a training have lanes of their own.

    With ``random_bptt`` the borders between an epoch's batches are drawn from (seed, epoch), so that gradients are cut
    off at different places in each epoch. The number of batches stays the same, and every token is still a target once.

    With direction ``backward``, the tokens of each document are reversed, so a language model predicts each token from
    those after it. The order of the documents is the same in both directions.

    Args:
        tokens: the documents; their labels are ignored.
        eos_id, pad_id: ids of the boundary and of the padding past the end.
        batch_size: lanes.
        bptt: positions of a lane in one batch; the last batch of an epoch may be shorter.
        seed, shuffle: order of the documents; without ``shuffle`` that of ``tokens``.
        direction: how each document is read.
        random_bptt: draw the lengths of batches with :func:`random_lengths`, scaled so that they fill a lane; the
            ``rate`` of each batch is then its length over ``bptt``.

    Raises:
        UserError: no documents.
    """

    def __init__(
        self,
        tokens: TokenArray,
        eos_id: int,
        pad_id: int,
        batch_size: int,
        bptt: int,
        seed: int,
        shuffle: bool,
        direction: Direction = "forward",
        random_bptt: bool = False,
    ) -> None:
        super().__init__(tokens, seed, shuffle, (batch_size, bptt, int(random_bptt)))
        if len(tokens) == 0:
            raise UserError("there are no documents to make a text stream of")
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.batch_size = batch_size
        self.bptt = bptt
        self.direction = direction
        self.random_bptt = random_bptt
        self.num_targets = tokens.num_tokens + len(tokens)
        self.lane_length = -(-self.num_targets // batch_size)
        self._arrange()

    def shard(self, rank: int, world_size: int) -> None:
        """As in the base class.

        Raises:
            UserError: fewer lanes than processes.
        """
        if self.batch_size < world_size:
            raise UserError(f"batch_size is {self.batch_size}: {world_size} processes need as many streams at least")
        super().shard(rank, world_size)

    def _arrange(self) -> None:
        count, random = len(self.tokens), self._random()
        self._order = random.permutation(count) if self.shuffle else np.arange(count)
        self._borders = self._draw_borders(random)  # (len + 1,): where a lane's batches begin, and where it ends
        # ends[j]: where the j-th document of this epoch, with its closing <eos>, ends in the text of targets
        self._ends = np.cumsum(self.tokens.lengths[self._order] + 1)

    def _draw_borders(self, random: np.random.Generator) -> np.ndarray:
        count = len(self)
        if not self.random_bptt:
            return np.minimum(np.arange(count + 1) * self.bptt, self.lane_length)
        ends = np.cumsum(random_lengths(count, self.bptt, random) - 1)
        # each batch gets one position, so that none is empty, and its share of the remaining ones
        shares = np.rint((self.lane_length - count) * ends / ends[-1]).astype(np.int64)
        return np.concatenate([[0], np.arange(1, count + 1) + shares])

    def __len__(self) -> int:
        return -(-self.lane_length // self.bptt)

    def __getitem__(self, index: int) -> StreamBatch:
        positions = self._positions(index)
        ids = self._lookup(positions)
        real = positions[:, 1:] < self.num_targets
        return StreamBatch(
            input_ids=torch.from_numpy(np.where(real, ids[:, :-1], self.pad_id)),
            targets=torch.from_numpy(np.where(real, ids[:, 1:], IGNORED)),
            attention_mask=torch.from_numpy(real),
            first=index == 0,
            num_tokens=int(real.sum()),
            rate=real.shape[1] / self.bptt if self.random_bptt else 1.0,
        )

    def documents(self, index: int) -> np.ndarray:
        """The documents of the targets; the input before a lane's first target may belong to another document."""
        documents = self.target_documents(index)
        return np.unique(documents[documents >= 0])

    def target_documents(self, index: int) -> np.ndarray:
        """Number of the document that each target of batch ``index`` belongs to, (batch, time); -1 past the end."""
        targets = self._positions(index)[:, 1:]
        ranks = np.searchsorted(self._ends, np.minimum(targets, self.num_targets - 1), side="right")
        return np.where(targets < self.num_targets, self._order[ranks], -1)

    def _positions(self, index: int) -> np.ndarray:
        """Where the inputs and the last target of a batch stand in the text of targets, (batch, time + 1)."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        start, end = self._borders[index : index + 2]
        lanes = np.arange(self.rank, self.batch_size, self.world_size)[:, None] * self.lane_length
        return lanes + np.arange(start - 1, end)

    def _lookup(self, positions: np.ndarray) -> np.ndarray:
        """Ids at ``positions`` of the text of targets (any shape); <eos> at -1 and past the end."""
        inside = np.clip(positions, 0, self.num_targets - 1)
        rank = np.searchsorted(self._ends, inside, side="right")
        document = self._order[rank]
        length = self.tokens.lengths[document]
        offset = inside - (self._ends[rank] - length - 1)  # how many tokens of its document are read before it
        is_token = (offset < length) & (inside == positions)
        if self.direction == "backward":
            offset = length - 1 - offset
        ids = np.full(positions.shape, self.eos_id, dtype=np.int64)
        ids[is_token] = self.tokens.tokens[(self.tokens.starts[document] + offset)[is_token]]
        return ids


def random_lengths(count: int, bptt: int, random: np.random.Generator) -> np.ndarray:
    """Lengths of stretches, int (count,), as AWD-LSTM draws them (Merity et al. 2018, section 4.1).

    They are normal around ``bptt``, or with probability 0.05 around half of it, with a deviation of 5; at least 5.
    """
    middle = np.where(random.random(count) < 0.95, bptt, bptt / 2)
    lengths: np.ndarray = np.maximum(random.normal(middle, 5.0).astype(np.int64), 5)
    return lengths
