"""Figures of the user's own beside ours: any torchmetrics metric of a classifier's probabilities and labels."""

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
MOST_CLASSES = 500  # that the trial at the start has documents of


class OwnMetrics(nn.Module):
    """Gives each metric all documents of a pass in one ``update``, on the CPU: no batch, and no process, stands apart.

    A metric is tried out here on a few made-up documents: one that doesn't fit the labels is told of now, and not after
    the first epoch.

    Args:
        metrics: by the name of the figure.
        num_classes: labels.
        multilabel: a document has any number of them.

    Raises:
        UserError: a name that can't be one or is that of another figure, or a metric that fails or gives no number.
    """

    def __init__(self, metrics: Mapping[str, Metric], num_classes: int, multilabel: bool) -> None:
        super().__init__()
        # a plain mapping, no ModuleDict: what a metric holds belongs neither to the weights nor on their device
        self.metrics = dict(metrics)
        self.num_classes, self.multilabel = num_classes, multilabel
        self.rows = Rows()
        for name, metric in self.metrics.items():
            if not re.fullmatch(r"\w[\w-]*", name):
                raise UserError(f"model.metrics: {name!r} can't name a figure: use letters, digits, '_' and '-'")
            if name in TAKEN or name.startswith("lm_"):
                raise UserError(f"model.metrics.{name}: there is a figure {name} already: choose another name")
            for part in metric.modules():  # each process has all documents: what it adds up is the whole already
                if isinstance(part, Metric):
                    part.distributed_available_fn = _alone
        with torch.device("cpu"), warnings.catch_warnings():  # not where a network that is built here lies
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
    """What a metric is told that asks whether there are other processes."""
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
    """Probabilities and labels of documents of each class, of many of the last ones.

    Each class has one that is predicted right and one that is not; multi-label, one that has it alone and one that has
    all others.
    """
    classes = torch.arange(max(0, num_classes - MOST_CLASSES), num_classes)
    one_hot = nn.functional.one_hot(classes, num_classes)  # (documents, classes)
    if multilabel:
        labels = torch.cat([one_hot, 1 - one_hot])
        return 0.25 + 0.5 * labels.flip(0), labels
    shares = 0.5 * one_hot + 0.5 / num_classes
    return torch.cat([shares, shares.roll(1, 0)]), classes.repeat(2)
