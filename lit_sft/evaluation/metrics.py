"""What is measured in validation and test: torchmetrics, with the names that logs and ``metrics.json`` use."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection, SumMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MulticlassPrecision,
    MulticlassRecall,
)

IGNORED = -100  # a target that isn't predicted
BINS = 15  # of the calibration error, as Guo et al. 2017
# The figures of each kind of head, which can be monitored as val/NAME. "multilabel" is a classifier for any number of
# labels per document. Classifiers also have precision/LABEL and recall/LABEL for each class.
FIGURES = {
    "lm": ("loss", "perplexity", "bits_per_byte"),
    "classifier": ("loss", "accuracy", "macro_f1", "auroc", "mcc", "ece"),
    "multilabel": ("loss", "accuracy", "micro_f1", "macro_f1", "auroc", "average_precision", "ece"),
}
MORE_IS_BETTER = ("accuracy", "micro_f1", "macro_f1", "auroc", "average_precision", "mcc", "precision", "recall")
LESS_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "ece")


def better(figure: str, own: Mapping[str, Metric] | None = None) -> Literal["min", "max"] | None:
    """Whether a lower ("min") or higher ("max") value of a figure is better; None if that is unknown.

    Args:
        figure: name of the figure, such as ``val/macro_f1``.
        own: the user's metrics, by the names of their figures.
    """
    name = figure.removeprefix("val/")
    if own and name in own:
        more = own[name].higher_is_better
        return None if more is None else "max" if more else "min"
    kind = name.split("/")[0].removeprefix("lm_")
    if kind in LESS_IS_BETTER or figure == "train/loss":
        return "min"
    return "max" if kind in MORE_IS_BETTER else None


class LanguageModelMetrics(nn.Module):
    """Loss (nats a token), perplexity = exp(loss) and bits per byte of the text, averaged by token.

    Bits per byte = (sum of the loss in nats / ln 2) / bytes of the documents. Unlike perplexity, it is comparable
    between byte-level tokenizers (with other tokenizers, it falls as more words are unknown). A loss of NaN makes every
    figure NaN.
    """

    def __init__(self) -> None:
        super().__init__()
        # Sums without a check for NaN: the check would drop such a batch, and wait for the device at each one.
        self.nll = SumMetric(nan_strategy="disable")
        self.targets = SumMetric(nan_strategy="disable")

    def update(self, nll: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            nll: (batch, time) negative log-likelihood of each target, 0 where ignored.
            targets: (batch, time).
        """
        self.nll.update(nll.sum())
        self.targets.update((targets != IGNORED).sum())

    def compute(self, bytes_per_target: float) -> dict[str, float]:
        """``loss``, ``perplexity`` and ``bits_per_byte`` over all updates.

        Args:
            bytes_per_target: UTF-8 bytes of the documents divided by their number of targets; 0 if unknown, which omits
                ``bits_per_byte``. It is a ratio so that the figure is also right if only part of the text was read.
        """
        loss = float(self.nll.compute() / self.targets.compute())
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if bytes_per_target > 0:
            metrics["bits_per_byte"] = loss / math.log(2) / bytes_per_target
        return metrics

    def reset(self) -> None:
        """Forget all batches."""
        self.nll.reset()
        self.targets.reset()


class ClassificationMetrics(nn.Module):
    """Loss, accuracy, macro-F1, AUROC, MCC, expected calibration error, and precision and recall of each class.

    Two classes are measured as two columns of probabilities, so every figure is defined as for more classes.

    If classes are missing from the data or the predictions: macro-F1 is the mean over the classes that occur or are
    predicted; AUROC (one class against the rest) is the mean over those that occur, NaN if only one does; MCC is 0 if
    only one class occurs or is predicted, as in scikit-learn; precision is 0 for a class that is never predicted, and
    recall for one that never occurs.
    """

    def __init__(self, label_names: Sequence[str]) -> None:
        super().__init__()
        self.label_names = list(label_names)
        num_classes = len(self.label_names)
        self.loss = MeanMetric(nan_strategy="disable")
        self.scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "macro_f1": MulticlassF1Score(num_classes, average="macro"),
                # without validate_args, whose check of the labels reads values back from the device at each batch
                "auroc": MulticlassAUROC(num_classes, average="none", thresholds=None, validate_args=False),
                "mcc": MulticlassMatthewsCorrCoef(num_classes),
                "ece": MulticlassCalibrationError(num_classes, n_bins=BINS),
                "precision": MulticlassPrecision(num_classes, average="none", zero_division=0),
                "recall": MulticlassRecall(num_classes, average="none", zero_division=0),
                "confusion": MulticlassConfusionMatrix(num_classes),
            },
            compute_groups=False,
        )
        self.reset()

    @property
    def guessing(self) -> float:
        """The loss of a model that gives every class the same probability."""
        return math.log(len(self.label_names))

    def update(self, probabilities: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch: probabilities (batch, classes), labels (batch,), loss (batch,) of each document."""
        self.loss.update(loss)
        self.scores.update(probabilities, labels)

    def compute(self) -> dict[str, float]:
        """Every figure over all updates; a class's own as ``precision/NAME`` and ``recall/NAME``."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets")
            scores = self.scores.compute()
        occurs, predicted = (scores["confusion"].sum(axis) > 0 for axis in (1, 0))  # each (classes,)
        auroc = scores["auroc"][occurs].mean() if occurs.sum() > 1 else torch.tensor(math.nan)
        # in the binary case, torchmetrics' MCC of a constant prediction on unbalanced labels is as much as 0.8
        mcc = scores["mcc"] if occurs.sum() > 1 and predicted.sum() > 1 else torch.tensor(0.0)
        figures = {"accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"], "auroc": auroc, "mcc": mcc}
        metrics = {"loss": float(self.loss.compute())}
        metrics |= {name: float(value) for name, value in {**figures, "ece": scores["ece"]}.items()}
        for name in ("precision", "recall"):
            metrics |= {f"{name}/{label}": float(v) for label, v in zip(self.label_names, scores[name], strict=True)}
        return metrics

    def confusion(self) -> dict[str, Any]:
        """How often each class (a row) was taken for each (a column), as plain values."""
        return {"labels": self.label_names, "matrix": self.scores["confusion"].compute().tolist()}

    def collapsed_to(self) -> str | None:
        """The label predicted for nearly every document although several labels occur; None if there is none.

        The predictions have collapsed to the most predicted label if the documents predicted as anything else are fewer
        than a twentieth of the documents that are something else. With two classes of equal size, these are fewer than
        2.5% of all documents; the rarer the other labels are, the lower the limit.
        """
        confusion = self.scores["confusion"].compute().cpu()  # (classes, classes): rows are the labels
        labels, predicted = confusion.sum(1), confusion.sum(0)
        most = int(predicted.argmax())
        given, due = (int(counts.sum() - counts[most]) for counts in (predicted, labels))
        return self.label_names[most] if int((labels > 0).sum()) > 1 and 20 * given < due else None

    def reset(self) -> None:
        """Forget all batches."""
        self.loss.reset()
        self.scores.reset()
        ranking: Any = self.scores["auroc"]
        nothing = torch.zeros(0, len(self.label_names), device=ranking.device)
        ranking.update(nothing, nothing[:, 0].long())  # a process without documents gathers the right shape
