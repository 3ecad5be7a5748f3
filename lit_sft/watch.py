"""What the LightningModule tells a callback that watches over a fit, where Lightning has no hook for it."""

from __future__ import annotations

import lightning as L
from torch import Tensor
from torch.optim import Optimizer


class Watcher:
    """One that finds everything well. The module asks the first of the Trainer's callbacks that is of this kind.

    It has a room of its own because the module imports no callback, nor a callback the module.
    """

    def accepts(self, trainer: L.Trainer, loss: Tensor) -> bool:
        """Whether a batch of this loss may be learned from: if not, nothing is updated by it.

        ``loss``: scalar, detached; of several processes the mean over all, so that they come to the same.
        """
        return True

    def see_gradient(self, trainer: L.Trainer, norm: Tensor, optimizer: Optimizer) -> None:
        """Called before the optimizer uses a gradient of this norm (scalar, before clipping)."""

    def before_saving(self, trainer: L.Trainer) -> None:
        """Called before any checkpoint is written; an exception keeps it from being written."""
