"""Log what isn't a curve: text, and the run's options."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams


def log_text(trainer: L.Trainer, tag: str, markdown: str, step: int | None = None) -> None:
    """Write ``markdown`` to each TensorBoard logger of ``trainer``, as ``tag`` at ``step``."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, markdown, step)


def log_options(trainer: L.Trainer, options: dict[str, Any], figure: str) -> None:
    """Log the run's options to each logger, for its table of runs: TensorBoard's HPARAMS, W&B's config and the like.

    Args:
        trainer: its loggers are used.
        options: the options by their dotted names.
        figure: the scalar that TensorBoard shows beside them.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):  # its log_hyperparams would log a value of the figure, too
            plain = {name: v if isinstance(v, int | float | str) else str(v) for name, v in options.items()}
            for summary in hparams(plain, {figure: 0.0}):
                logger.experiment.file_writer.add_summary(summary)
        else:
            logger.log_hyperparams(options)
