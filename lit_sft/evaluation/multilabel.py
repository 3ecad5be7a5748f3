"""The figures of classifiers for documents with any number of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_calibration_error
from torchmetrics.utilities.data import dim_zero_cat

from lit_sft.evaluation.metrics import BINS
from lit_sft.evaluation.thresholds import DEFAULT, applying, best_thresholds

OUTCOMES = ("tn", "fp", "fn", "tp")


class Rows(Metric):
    """Every document's probabilities and labels, gathered from all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("probabilities", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch, each (batch, classes)."""
        self.probabilities.append(probabilities)  # type: ignore[union-attr, operator]
        self.labels.append(labels)  # type: ignore[union-attr, operator]

    def compute(self) -> tuple[Tensor, Tensor]:
        """Probabilities and labels of all documents, each (documents, classes), on the CPU."""
        return dim_zero_cat(self.probabilities).cpu(), dim_zero_cat(self.labels).cpu()  # type: ignore[arg-type]


class MultilabelMetrics(nn.Module):
    """Loss, accuracy, micro- and macro-F1, AUROC, average precision, calibration error, precision and recall by label.

    A label is predicted if its probability is at least its threshold, which is 0.5 until :meth:`tune` chooses one.
    ``accuracy``: the share of documents whose labels are all right. ``macro_f1``: mean over the labels that occur or
    are predicted. ``auroc``: mean over the labels that some documents have and others don't, NaN if there is none.
    ``average_precision``: mean over the labels that occur. ``ece``: expected calibration error over all pairs of a
    document and a label. Loss, AUROC, average precision and ECE don't depend on the thresholds. Precision is 0 for a
    label that is never predicted, and recall for one that never occurs.
    """

    def __init__(self, label_names: Sequence[str]) -> None:
        super().__init__()
        self.label_names = list(label_names)
        self.thresholds = [DEFAULT] * len(self.label_names)
        self.loss = MeanMetric(nan_strategy="disable")
        self.rows = Rows()
        self.reset()

    @property
    def guessing(self) -> float:
        """The loss of a probability of 1/2 for every label."""
        return math.log(2)

    def update(self, probabilities: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch: probabilities and labels (batch, classes), loss (batch,) of each document."""
        self.loss.update(loss)
        self.rows.update(probabilities, labels)

    def tune(self) -> None:
        """Choose each label's threshold by the documents measured by all processes; for validation data only."""
        self.thresholds = best_thresholds(*self.rows.compute())

    def counts(self) -> Tensor:
        """True negatives, false positives, false negatives and true positives of each label, int64 (classes, 4)."""
        probabilities, labels = self.rows.compute()
        kinds = 2 * labels.long() + applying(probabilities, self.thresholds)  # place in OUTCOMES
        return torch.stack([(kinds == kind).sum(0) for kind in range(len(OUTCOMES))], dim=1)

    def compute(self) -> dict[str, float]:
        """Every figure over all updates; a label's own as ``precision/NAME`` and ``recall/NAME``."""
        probabilities, labels = self.rows.compute()
        right = applying(probabilities, self.thresholds) == labels.bool()
        _, fp, fn, tp = self.counts().double().unbind(1)  # each (classes,)
        missed = fp + fn
        met = (tp + missed) > 0
        f1 = 2 * tp / (2 * tp + missed).clamp(min=1)
        figures = {
            "accuracy": right.all(1).double().mean(),
            "micro_f1": 2 * tp.sum() / (2 * tp + missed).sum().clamp(min=1),
            "macro_f1": f1[met].mean() if met.any() else torch.tensor(0.0),
            **_rankings(probabilities, labels.long()),
            "ece": binary_calibration_error(probabilities.flatten(), labels.long().flatten(), n_bins=BINS),
        }
        metrics = {"loss": float(self.loss.compute())} | {name: float(value) for name, value in figures.items()}
        for name, other in (("precision", fp), ("recall", fn)):
            values = tp / (tp + other).clamp(min=1)
            metrics |= {f"{name}/{label}": float(v) for label, v in zip(self.label_names, values, strict=True)}
        return metrics

    def confusion(self) -> dict[str, Any]:
        """True and false negatives and positives, as plain values: one row of ``matrix`` per label, see ``columns``."""
        return {"labels": self.label_names, "columns": list(OUTCOMES), "matrix": self.counts().tolist()}

    def collapsed_to(self) -> str | None:
        """The labels predicted for every document although their true labels differ; None if the predictions differ."""
        probabilities, labels = self.rows.compute()
        predicted = applying(probabilities, self.thresholds)
        if (predicted != predicted[:1]).any() or not (labels != labels[:1]).any():
            return None
        return ", ".join(self.label_names[i] for i in predicted[0].nonzero().flatten().tolist()) or "no label"

    def reset(self) -> None:
        """Forget all batches; the thresholds stay."""
        self.loss.reset()
        self.rows.reset()
        nothing = torch.zeros(0, len(self.label_names), device=self.rows.device)
        self.rows.update(nothing, nothing.to(torch.int8))  # a process without documents gathers the right shape


def _rankings(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """AUROC and average precision, each averaged over the labels for which it is defined."""
    occurs, always = labels.bool().any(0), labels.bool().all(0)
    auroc = [binary_auroc(probabilities[:, i], labels[:, i]) for i in (occurs & ~always).nonzero().flatten()]
    precision = [binary_average_precision(probabilities[:, i], labels[:, i]) for i in occurs.nonzero().flatten()]
    return {"auroc": _mean(auroc), "average_precision": _mean(precision)}


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean() if values else torch.tensor(math.nan)
