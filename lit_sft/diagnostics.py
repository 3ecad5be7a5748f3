"""Figures that some training steps measure and others don't."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
from torch import Tensor


def log_measured(trainer: L.Trainer, figures: Mapping[str, Tensor]) -> None:
    """Log figures of a training step at this step, once, whether it is one of ``log_every_n_steps`` or not.

    By ``self.log`` they would stand at later steps of the epoch, too, as if these had measured them, and a resumed run
    would not have them. Where gradients are accumulated they are of the step's last batch.
    """
    if trainer.fit_loop._should_accumulate():
        return
    trainer.callback_metrics.update(figures)
    values = {name: value.item() for name, value in figures.items()}
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)  # where Lightning's stand
