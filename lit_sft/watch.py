"""Hooks, missing in Lightning, through which the LightningModule informs callbacks that watch over a fit."""

from __future__ import annotations

import lightning as L
from torch import Tensor
from torch.optim import Optimizer


class Watcher:
    """A watcher that accepts everything; subclasses override it. The module uses the Trainer's first watcher callback.

    This is a separate file because the module imports no callback, and no callback imports the module.
    """

    def accepts(self, trainer: L.Trainer, loss: Tensor) -> bool:
        """Whether to train on a batch with this loss; if not, the batch updates nothing.

        ``loss``: scalar, detached; with several processes the mean over all, so that all decide alike.
        """
        return True

    def see_gradient(self, trainer: L.Trainer, norm: Tensor, optimizer: Optimizer) -> None:
        """Called before the optimizer uses a gradient of this norm (scalar, before clipping)."""

    def before_saving(self, trainer: L.Trainer) -> None:
        """Called before any checkpoint is written; an exception keeps it from being written."""


def bar_needs_loss(trainer: L.Trainer) -> bool:
    """Whether the progress bar needs the loss logged at every step, for which Lightning waits for the device."""
    bar = trainer.progress_bar_callback
    return bar is not None and not getattr(bar, "reads_loss", False)
