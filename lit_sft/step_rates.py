"""Learning rates of single steps: a batch can scale the schedule's rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.optim import Optimizer


class StepRates(L.LightningModule):
    """Scales the learning rates of a single step by the ``rate`` of its batches.

    Otherwise each token of a short stretch of text would weigh more than one of a long stretch (Merity et al. 2018,
    section 4.1). The rate is scaled and not the loss, since clipping, or an optimizer like Adam, would undo a factor on
    the loss. Schedule, logged rate and checkpoint are not affected. With accumulated gradients, the factor is the mean
    over the step's batches.

    It also corrects the last step of an epoch if that has fewer batches than ``accumulate_grad_batches``, by which
    Lightning divides even then: its gradient becomes the mean over the batches that it has. All batches of a step have
    the same weight, however many documents each has.
    """

    def __init__(self) -> None:
        super().__init__()
        self._step_rates: list[float] = []  # of this step's batches so far

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # Lightning's own rule
            self._step_rates = []
        if all(hasattr(b, "rate") for b in batch.values()):  # not if labeled documents come along
            self._step_rates += [b.rate for b in batch.values()]

    def share_of_step(self, batch_idx: int) -> float:
        """The factor on a batch's loss, in addition to Lightning's 1 / ``accumulate_grad_batches``."""
        accumulate, batches = self.trainer.accumulate_grad_batches, int(self.trainer.num_training_batches)
        rest = batches % accumulate
        return accumulate / rest if rest and batch_idx >= batches - rest else 1.0

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        rates = self._step_rates
        with scaled(optimizer.param_groups, sum(rates) / len(rates) if rates else 1.0):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


@contextmanager
def scaled(groups: list[dict[str, Any]], factor: float) -> Iterator[None]:
    """Multiply the groups' rates by a factor within this context; restore the exact rates afterwards."""
    if factor == 1.0:
        yield
        return
    before = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = group["lr"] * factor
    try:
        yield
    finally:
        for group, rate in zip(groups, before, strict=True):
            group["lr"] = rate
