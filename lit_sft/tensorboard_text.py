"""What stands beside the curves, for the loggers that show it: text, and the run's options."""

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
    """Give each logger the run's options, for its table of runs: TensorBoard's HPARAMS, W&B's config and the like.

    Args:
        trainer: whose loggers are meant.
        options: by their dotted names.
        figure: which scalar TensorBoard shows beside them.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):  # whose log_hyperparams would write a point of the figure as well
            plain = {name: v if isinstance(v, int | float | str) else str(v) for name, v in options.items()}
            for summary in hparams(plain, {figure: 0.0}):
                logger.experiment.file_writer.add_summary(summary)
        else:
            logger.log_hyperparams(options)
