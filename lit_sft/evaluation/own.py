"""User-defined figures: any torchmetrics metric of a classifier's probabilities and labels."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_sft.errors import UserError
from lit_sft.evaluation.metrics import FIGURES
from lit_sft.evaluation.multilabel import Rows
from lit_sft.evaluation.predictions import Predictions

TAKEN = {name for names in FIGURES.values() for name in names} | {"precision", "recall"}
MOST_CLASSES = 500  # the trial at the start has documents of no more classes than this


class OwnMetrics(nn.Module):
    """Updates each metric once per pass, on the CPU, with the documents of all batches and processes together.

    The constructor tries each metric on a few made-up documents, so that a metric that doesn't fit the labels fails
    here and not after the first epoch.

    Args:
        metrics: the metrics, by the names of their figures.
        num_classes: number of labels.
        multilabel: whether a document may have any number of them.

    Raises:
        UserError: if a name is invalid or that of another figure, or a metric fails or doesn't return a single number.
    """

    def __init__(self, metrics: Mapping[str, Metric], num_classes: int, multilabel: bool) -> None:
        super().__init__()
        # a plain dict and no ModuleDict: the metrics' states should be neither saved nor moved with the weights
        self.metrics = dict(metrics)
        self.num_classes, self.multilabel = num_classes, multilabel
        self.rows = Rows()
        for name, metric in self.metrics.items():
            if not re.fullmatch(r"\w[\w-]*", name):
                raise UserError(f"model.metrics: {name!r} can't name a figure: use letters, digits, '_' and '-'")
            if name in TAKEN or name.startswith("lm_"):
                raise UserError(f"model.metrics.{name}: there is a figure {name} already: choose another name")
            for part in metric.modules():  # each process has all documents, so nothing is left to be synchronised
                if isinstance(part, Metric):
                    part.distributed_available_fn = _alone
        with torch.device("cpu"), warnings.catch_warnings():  # not on the device that the network is being built on
            warnings.simplefilter("ignore")
            self._measure(*_made_up(num_classes, multilabel))
        self.reset()

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch: probabilities (batch, classes), labels (batch,) or, multi-label, (batch, classes)."""
        self.rows.update(probabilities.float(), labels.long())

    def compute(self) -> dict[str, float]:
        """Each figure over all updates of all processes."""
        return self._measure(*self.rows.compute())

    def of(self, predictions: Predictions) -> dict[str, float]:
        """Each figure of these predictions."""
        return self._measure(torch.from_numpy(predictions.probabilities), torch.from_numpy(predictions.labels))

    def reset(self) -> None:
        """Forget all batches."""
        self.rows.reset()
        shape = (0, self.num_classes) if self.multilabel else (0,)
        nothing = torch.zeros(0, self.num_classes, device=self.rows.device)
        self.rows.update(nothing, nothing.new_zeros(shape, dtype=torch.long))  # as MultilabelMetrics.reset

    def _measure(self, probabilities: Tensor, labels: Tensor) -> dict[str, float]:
        columns = probabilities.float(), labels.long()
        return {name: _figure(name, metric, *columns) for name, metric in self.metrics.items()}


def _alone() -> bool:
    """Stands in for torchmetrics' check for other processes, so that a metric doesn't synchronise."""
    return False


def _figure(name: str, metric: Metric, probabilities: Tensor, labels: Tensor) -> float:
    try:
        metric.reset()
        metric.update(probabilities, labels)
        value = torch.as_tensor(metric.compute())
        metric.reset()  # its copy of the documents
    except Exception as error:  # code of the user's own
        given = f"probabilities {tuple(probabilities.shape)} and labels {tuple(labels.shape)}"
        raise UserError(
            f"model.metrics.{name}: {type(metric).__name__} fails on {given}: {type(error).__name__}: {error}"
        ) from error
    if value.numel() != 1:
        raise UserError(
            f"model.metrics.{name}: {type(metric).__name__} gives {value.numel()} numbers and a figure is one; "
            "torchmetrics' have an option average"
        )
    return float(value)


def _made_up(num_classes: int, multilabel: bool) -> tuple[Tensor, Tensor]:
    """Probabilities and labels of made-up documents for each class, or for the last ``MOST_CLASSES`` of many.

    Each class has one document that is predicted right and one that is predicted wrong; multi-label: one document with
    this label only, and one with all other labels.
    """
    classes = torch.arange(max(0, num_classes - MOST_CLASSES), num_classes)
    one_hot = nn.functional.one_hot(classes, num_classes)  # (documents, classes)
    if multilabel:
        labels = torch.cat([one_hot, 1 - one_hot])
        return 0.25 + 0.5 * labels.flip(0), labels
    shares = 0.5 * one_hot + 0.5 / num_classes
    return torch.cat([shares, shares.roll(1, 0)]), classes.repeat(2)
