"""The losses that a language model's test keeps, one per row of its batches: a stretch of a stream, or a response."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lit_sft.evaluation.metrics import IGNORED
from lit_sft.evaluation.weighted import Figures


@dataclass(frozen=True)
class Stretches:
    """Rows of a language model's batches: each a stretch of at most ``bptt`` tokens of one stream, or a response.

    Attributes:
        nll: float (rows,), total loss of a row's targets in nats.
        targets: int64 (rows,), number of targets of a row.
        bytes_per_target: see :meth:`lit_sft.evaluation.metrics.LanguageModelMetrics.compute`.
    """

    nll: np.ndarray
    targets: np.ndarray
    bytes_per_target: float

    def __len__(self) -> int:
        return len(self.nll)

    def figures(self, weights: np.ndarray) -> Figures:
        """The figures of :class:`LanguageModelMetrics` if rows are counted several times, or not at all.

        Args:
            weights: float64 (rows, weightings).

        Returns:
            Each figure (weightings,); NaN without any target.
        """
        with np.errstate(invalid="ignore"):
            loss = (self.nll.astype(np.float64) @ weights) / (self.targets.astype(np.float64) @ weights)
        figures = {"loss": loss, "perplexity": np.exp(np.minimum(loss, 700.0))}
        if self.bytes_per_target > 0:
            figures["bits_per_byte"] = loss / math.log(2) / self.bytes_per_target
        return figures


def row_sums(nll: Tensor, targets: Tensor, clean: Tensor | None) -> dict[str, Tensor]:
    """The sums over time that are kept for each row of a batch, each (batch,).

    Args:
        nll: (batch, time), 0 where ignored.
        targets: (batch, time).
        clean: bool (batch, time), the targets of clean documents, which get separate sums; None: no such sums.
    """
    real = targets != IGNORED
    sums = {"nll": nll.sum(1), "targets": real.sum(1)}
    if clean is not None:
        counted = clean.to(nll.device) & real
        sums |= {"clean_nll": (nll * counted).sum(1), "clean_targets": counted.sum(1)}
    return sums
