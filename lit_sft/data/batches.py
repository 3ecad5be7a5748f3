"""The base class of all data sets of batches: a map from an index to a finished batch, rearranged each epoch."""

from __future__ import annotations

import dataclasses
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Generic, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_sft.data.tokens import TokenArray

Direction = Literal["forward", "backward"]
"""How documents are read: from their first token on, or from their last one back."""


@dataclasses.dataclass
class Batch:
    """A batch as the model takes it: tensors, and plain Python values that never need a device."""

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return type(self)(**{k: function(v) if isinstance(v, Tensor) else v for k, v in values.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The batch with its tensors on ``device``; Lightning moves batches through this.

        A copy to a GPU is always non-blocking, since loaders put batches in pinned memory; Lightning requests that only
        for plain tensors.
        """
        non_blocking = non_blocking or torch.device(device).type == "cuda"
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The batch with its tensors in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        return self._map(lambda t: t.pin_memory())


BatchT = TypeVar("BatchT", bound=Batch)


class BatchDataset(Dataset[BatchT], ABC, Generic[BatchT]):
    """Map-style over the batches of one epoch; ``len()`` is the same every epoch.

    Batch ``i`` is a pure function of (data, options, seed, epoch, i) and does not depend on the batches before
    it. Two numbers are therefore enough to resume exactly, and worker processes may prepare batches in any
    order. The cost: ``set_epoch`` rebuilds an index of the documents (milliseconds per 100,000).

    Args:
        tokens: the documents.
        seed: a number >= 0; with the epoch it fixes every random choice.
        shuffle: whether the arrangement depends on seed and epoch at all.
        limits: the sizes that decide which documents, or tokens, a batch holds.
    """

    def __init__(self, tokens: TokenArray, seed: int, shuffle: bool, limits: tuple[int, ...]) -> None:
        self.tokens = tokens
        self.seed = seed
        self.shuffle = shuffle
        self.limits = limits
        self.epoch = 0
        self.rank, self.world_size = 0, 1

    def shard(self, rank: int, world_size: int) -> None:
        """Serve every ``world_size``-th row of each batch, from row ``rank`` on: one process's share of the batch.

        The number and content of the full batches do not change, so training does not depend on the number of
        processes.
        """
        self.rank, self.world_size = rank, world_size

    @cached_property
    def order(self) -> int:
        """A checksum of the documents in their order, the limits and the seed: if it is equal, so are arrangements."""
        return zlib.crc32(repr(self.limits).encode(), zlib.crc32(self.tokens.keys.tobytes(), self.seed & 0xFFFFFFFF))

    def set_epoch(self, epoch: int) -> None:
        """Arrange the batches of ``epoch`` (0, 1, ...)."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._arrange()

    def _random(self) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch))

    @abstractmethod
    def _arrange(self) -> None:
        """Determine the order of the documents and batches of epoch ``self.epoch``."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> BatchT:
        """Batch ``index`` of the epoch; IndexError beyond the last, so that plain iteration ends."""

    @abstractmethod
    def documents(self, index: int) -> np.ndarray:
        """The numbers of the documents that batch ``index`` of the epoch reads from, sorted, without repeats."""
