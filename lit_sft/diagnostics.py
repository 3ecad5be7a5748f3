"""Log a training step's figures beside its loss."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
from torch import Tensor

from lit_sft.errors import UserError
from lit_sft.objectives import Loss

WHOLE = {"lm", "supervised", "completion"}  # parts that are the loss itself if there is no other
TAKEN = {"loss", "grad_norm", "skipped_batches"}  # training figures that are logged elsewhere


def log_parts(module: L.LightningModule, loss: Loss, batch_size: int) -> None:
    """Log the parts of a loss and what this step alone has measured.

    Raises:
        UserError: a part has the name of another figure.
    """
    if taken := TAKEN & {*loss.parts, *loss.measured}:
        raise UserError(f"model.objective: its part {min(taken)!r} has the name of another figure: choose another")
    if len(loss.parts) > 1 or not WHOLE.issuperset(loss.parts):
        module.log_dict({f"train/{name}": value for name, value in loss.parts.items()}, batch_size=batch_size)
    if loss.measured:
        log_measured(module.trainer, {f"train/{name}": value for name, value in loss.measured.items()})


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
