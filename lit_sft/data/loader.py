"""The loader of all data sets here: it keeps track of its position, so that a run resumes with the next batch."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic

import torch
from torch.utils.data import DataLoader, SequentialSampler

from lit_sft.data.batches import BatchDataset, BatchT
from lit_sft.errors import UserError
from lit_sft.processes import STOPPING


class CursorSampler(SequentialSampler):
    """The batch numbers of an epoch from ``cursor`` on; its length is the whole epoch's.

    It is a ``SequentialSampler`` because Lightning replaces any other kind for ``overfit_batches``, and has
    no ``set_epoch`` because Lightning would call it with its own count of epochs, which differs from the
    loader's on resume, or when a short loader is cycled beside a long one.
    """

    cursor = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.cursor, len(self)))


class StatefulLoader(DataLoader[BatchT], Generic[BatchT]):
    """Serves the batches of a data set epoch after epoch, and resumes exactly after any batch.

    A pass (``for batch in loader``) is one epoch, and the next pass is the next epoch, even if the previous
    pass was broken off. The first pass after ``load_state_dict`` is the rest of the epoch in which the state
    was taken. Batches are counted in the main process just before they are handed out: batches that workers
    have prepared in advance do not count, and a state taken while a batch is trained on resumes with the
    batch after it.

    Lightning finds ``state_dict`` by itself, saves it with every checkpoint and loads it before the first
    pass. It may make an iterator and drop it unused, and it ends a pass after the last batch without waiting
    for ``StopIteration``; hence a pass begins with its first batch, and an epoch ends with its last. A
    resumed run makes one more iterator than an uninterrupted one, so no iterator draws from torch's global
    generator (a plain DataLoader draws a number per pass, which would change all later dropout masks).

    Args:
        dataset: map-style over batches.
        num_workers: processes that prepare batches; they are started anew each epoch, with the epoch's order.
        pin_memory: hand batches out in page-locked memory.
        cut_short: called when the state is read; tells whether the pass ends with this batch although the data set has
            more (``limit_train_batches``, a short loader cycled beside a long one). The state is then the next epoch's
            start.

    Attributes:
        epoch: the epoch of the last batch handed out, or of the first one if none has been.
        served: batches of ``epoch`` handed out so far.
    """

    dataset: BatchDataset[BatchT]
    sampler: CursorSampler

    def __init__(
        self,
        dataset: BatchDataset[BatchT],
        num_workers: int = 0,
        pin_memory: bool = False,
        cut_short: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=None,  # the data set makes whole batches
            sampler=CursorSampler(dataset),
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_main_process,
        )
        self.epoch = dataset.epoch
        self.served = 0
        self.cut_short = cut_short
        self._broken_off = False  # a pass has begun, and the start of the next one is not set

    def __iter__(self) -> Iterator[BatchT]:  # type: ignore[override]  # DataLoader promises its own iterator class
        if self._broken_off or self.served == len(self):
            self._start(self.epoch + 1, 0)
        self.dataset.set_epoch(self.epoch)
        self.sampler.cursor = self.served
        batches = super().__iter__()
        end_workers = getattr(batches, "_shutdown_workers", None)
        if end_workers is not None:  # workers ignore SIGTERM: the process would wait for them when it exits
            atexit.register(end_workers)
        try:
            for batch in batches:
                self._broken_off = True
                self.served += 1
                yield batch
        finally:
            if end_workers is not None:
                atexit.unregister(end_workers)
        self._start(self.epoch + 1, 0)

    def _start(self, epoch: int, served: int) -> None:
        self.epoch = epoch
        self.served = served
        self._broken_off = False

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch: ``epoch`` and ``served``; ``batches`` per epoch and ``order`` as a check."""
        ended = self.served == len(self) or (self.served > 0 and self.cut_short is not None and self.cut_short())
        return {
            "epoch": self.epoch + ended,
            "served": 0 if ended else self.served,
            "batches": len(self),
            "order": self.dataset.order,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            UserError: not a state of this class, or one taken in the middle of an epoch whose documents, order or
                batches were different, so that the position is meaningless.
        """
        fields = ("epoch", "served", "batches", "order")
        counts = [state.get(name) for name in fields]
        if set(state) != set(fields) or not all(type(count) is int and count >= 0 for count in counts):
            raise UserError(f"the data position in the checkpoint, {dict(state)}, is not one of this loader")
        if state["served"] and (state["batches"] != len(self) or state["served"] > len(self)):
            raise UserError(
                f"cannot resume: the checkpoint is {state['served']} batches into an epoch of "
                f"{state['batches']}, but the data now make {len(self)} an epoch; "
                "restore data and batch sizes, or start a new run"
            )
        if state["served"] and state["order"] != self.dataset.order:
            raise UserError(
                f"cannot resume: the checkpoint is {state['served']} batches into an epoch of other documents, or of "
                "another order of them: restore data, lengths, batch sizes and --seed_everything, or start a new run"
            )
        self._start(state["epoch"], state["served"])


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A terminal or scheduler signals the whole group, but the main process needs its workers until it has stopped."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
