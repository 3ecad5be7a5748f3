"""Log figures that only some training steps measure."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
from torch import Tensor


def log_measured(trainer: L.Trainer, figures: Mapping[str, Tensor]) -> None:
    """Log figures at the training step that measured them, once, regardless of ``log_every_n_steps``.

    ``self.log`` would repeat them at later steps of the epoch, as if these had measured them, and a resumed run would
    not have them. With accumulated gradients, they are those of the step's last batch.
    """
    if trainer.fit_loop._should_accumulate():
        return
    trainer.callback_metrics.update(figures)
    values = {name: value.item() for name, value in figures.items()}
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)  # where Lightning's stand
