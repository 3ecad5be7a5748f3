"""What the LightningModule tells callbacks that watch over a fit, where Lightning has no hook for it."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
from torch import Tensor
from torch.optim import Optimizer


class Watcher:
    """One that finds everything well. The module asks the first of the Trainer's callbacks that is of this kind.

    It has a room of its own because the module imports no callback, nor a callback the module.
    """

    @staticmethod
    def among(callbacks: Sequence[L.Callback]) -> Watcher:
        """The first of a Trainer's callbacks that is one; else one that finds everything well."""
        return next((one for one in callbacks if isinstance(one, Watcher)), Watcher())

    def accepts(self, trainer: L.Trainer, loss: Tensor) -> bool:
        """Whether a batch of this loss may be learned from: if not, nothing is updated by it.

        ``loss``: scalar, detached; of several processes the mean over all, so that they come to the same.
        """
        return True

    def see_gradient(self, trainer: L.Trainer, norm: Tensor, optimizer: Optimizer) -> None:
        """Called before the optimizer uses a gradient of this norm (scalar, before clipping)."""

    def before_saving(self, trainer: L.Trainer) -> None:
        """Called before any checkpoint is written; an exception keeps it from being written."""


def bar_needs_loss(trainer: L.Trainer) -> bool:
    """Whether a progress bar is to be given the loss at every step, for which Lightning waits for the device."""
    bar = trainer.progress_bar_callback
    return bar is not None and not getattr(bar, "reads_loss", False)
