"""The losses that a language model's test keeps, one per document: of a text, or of a response to its prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_sft.evaluation.metrics import IGNORED
from lit_sft.evaluation.weighted import Figures


@dataclass(frozen=True)
class TextLosses:
    """A language model's loss on each document, or on each response.

    Attributes:
        nll: float (documents,), total loss of a document's targets in nats.
        targets: int64 (documents,), number of targets of a document.
        bytes_per_target: see :meth:`lit_sft.evaluation.metrics.LanguageModelMetrics.compute`.
    """

    nll: np.ndarray
    targets: np.ndarray
    bytes_per_target: float

    def __len__(self) -> int:
        return len(self.nll)

    def figures(self, weights: np.ndarray) -> Figures:
        """The figures of :class:`LanguageModelMetrics` if documents are counted several times, or not at all.

        Args:
            weights: float64 (documents, weightings).

        Returns:
            Each figure (weightings,); NaN without any target.
        """
        with np.errstate(invalid="ignore"):
            loss = (self.nll.astype(np.float64) @ weights) / (self.targets.astype(np.float64) @ weights)
        figures = {"loss": loss, "perplexity": np.exp(np.minimum(loss, 700.0))}
        if self.bytes_per_target > 0:
            figures["bits_per_byte"] = loss / math.log(2) / self.bytes_per_target
        return figures


def response_sums(nll: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The sums over time that are kept for each response, each (batch,).

    Args:
        nll: (batch, time), 0 where ignored.
        targets: (batch, time).
    """
    return {"nll": nll.sum(1), "targets": (targets != IGNORED).sum(1)}


def document_sums(nll: Tensor, targets: Tensor, documents: np.ndarray) -> dict[str, Tensor]:
    """The sums that are kept for each document of a stream's batch; it may go on in other batches.

    Args:
        nll: (batch, time), 0 where ignored.
        targets: (batch, time).
        documents: int64 (batch, time), the document of each target; -1 where there is none.
    """
    known, places = np.unique(documents, return_inverse=True)
    to = torch.from_numpy(places.reshape(-1)).to(nll.device)
    sums = {"nll": nll.flatten(), "targets": (targets != IGNORED).flatten().long()}
    kept = {name: values.new_zeros(len(known)).index_add_(0, to, values) for name, values in sums.items()}
    return {"documents": torch.from_numpy(known), **kept}


def text_losses(rows: Mapping[str, np.ndarray], clean: np.ndarray | None, bytes_per_target: float) -> TextLosses:
    """Add up what the batches of a stream have kept, for the documents with at least one target.

    Args:
        rows: ``documents``, ``nll`` and ``targets``, as :func:`document_sums` returns them.
        clean: bool (documents of the split,), the documents to use; None: all.
        bytes_per_target: of these documents.
    """
    real = rows["documents"] >= 0
    nll, targets = (np.bincount(rows["documents"][real], rows[name][real]) for name in ("nll", "targets"))
    counted = targets > 0
    if clean is not None:
        counted &= clean[: len(counted)]
    return TextLosses(nll[counted], targets[counted].astype(np.int64), bytes_per_target)
