"""Text beside the curves, for the loggers that show it."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger


def log_text(trainer: L.Trainer, tag: str, markdown: str, step: int | None = None) -> None:
    """Write ``markdown`` to each TensorBoard logger of ``trainer``, as ``tag`` at ``step``."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, markdown, step)
