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
# The figures of each head, and of a classifier of any number of labels a document, to be monitored as val/NAME; a
# class's own come as precision/LABEL and recall/LABEL.
FIGURES = {
    "lm": ("loss", "perplexity", "bits_per_byte"),
    "classifier": ("loss", "accuracy", "macro_f1", "auroc", "mcc", "ece"),
    "multilabel": ("loss", "accuracy", "micro_f1", "macro_f1", "auroc", "average_precision", "ece"),
}
MORE_IS_BETTER = ("accuracy", "micro_f1", "macro_f1", "auroc", "average_precision", "mcc", "precision", "recall")
LESS_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "ece")


def better(figure: str, own: Mapping[str, Metric] | None = None) -> Literal["min", "max"] | None:
    """Whether less or more of a figure such as ``val/macro_f1`` is better; None where nothing tells it.

    Args:
        figure: its name.
        own: the user's metrics by the names of their figures.
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

    Bits per byte = (sum of the loss in nats / ln 2) / bytes of the documents: comparable between byte-level tokenizers,
    which perplexity is not (with others, the fewer words are known, the less it is). A loss that is not a number makes
    every figure not a number.
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
            bytes_per_target: UTF-8 bytes of the documents over their number of targets; 0 where unknown, which leaves
                ``bits_per_byte`` out. A ratio, so that the figure stays right when a part of the text was read.
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

    Two classes are measured as two columns of probabilities, so that every figure is defined as for more classes.
    Figures that need what the data lack: macro-F1 is the mean over the classes that occur or are predicted, AUROC (one
    class against the rest) over those that occur, NaN where only one does; MCC is 0 where only one class occurs or is
    predicted, as in scikit-learn; precision and recall are 0 for a class that is never predicted or never occurs.
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
                # its check of the labels alone reads values back from the device at each batch
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
        # torchmetrics gives a constant prediction on unbalanced labels as much as 0.8 in the binary case.
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
        """The label that nearly every document got though they have several; None where there is none.

        That is one beside which others were given to fewer than a twentieth of as many documents as have others: with
        two classes of one size to fewer than 2.5%, and the rarer the others are, the fewer it takes.
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
