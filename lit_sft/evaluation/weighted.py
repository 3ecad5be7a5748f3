"""The figures of metrics.py if documents are counted several times, or not at all: for many weightings at once.

A bootstrap resample of a test set, and its part without copies of training documents, are both weightings of the
documents: they say how often each one is counted. The figures equal those of :class:`ClassificationMetrics` on the
documents repeated accordingly, which a test checks. They are computed from sums over documents, so that 2,000 resamples
take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lit_sft.evaluation.metrics import BINS
from lit_sft.evaluation.predictions import Predictions

MATRIX_GROUPS = 32  # up to this many groups, a matrix product with the memberships is faster than sorting
Figures = dict[str, np.ndarray]


def weighted_figures(
    predictions: Predictions, weights: np.ndarray, counts_only: bool = False, undefined: float = 0.0
) -> Figures:
    """Every figure of a classifier under each weighting, (weightings,) by its name; NaN where it isn't defined.

    Args:
        predictions: the predictions of the documents.
        weights: float64 (documents, weightings), how often each document is counted.
        counts_only: omit AUROC and calibration error, which take most of the time.
        undefined: value of MCC and of a class's precision and recall if they are 0 / 0: 0 by convention; NaN for
            resamples, where a 0 would only mean that a rare class happened not to be drawn.
    """
    p, classes = predictions, len(predictions.label_names)
    size = weights.sum(0)  # (weightings,)
    right = p.predicted == p.labels
    hits = group_sums(np.where(right, p.labels, -1), classes, weights)  # (classes, weightings), as the next two
    occurs, predicted = group_sums(p.labels, classes, weights), group_sums(p.predicted, classes, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = {"loss": p.losses.astype(np.float64) @ weights / size, "accuracy": hits.sum(0) / size}
        f1 = np.nan_to_num(2 * hits / (occurs + predicted))
        figures["macro_f1"] = f1.sum(0) / (occurs + predicted > 0).sum(0)
        if not counts_only:
            figures["auroc"] = _mean_auroc(p, occurs, weights)
            figures["ece"] = _calibration_error(p, right, weights) / size
        figures["mcc"] = _correlation(hits.sum(0), occurs, predicted, undefined)
    return figures | precision_and_recall(hits, predicted, occurs, p.label_names, undefined)


def precision_and_recall(
    hits: np.ndarray, predicted: np.ndarray, occurs: np.ndarray, label_names: Sequence[str], undefined: float = 0.0
) -> Figures:
    """Precision and recall of each label, ``undefined`` where it is never predicted or never occurs.

    Args:
        hits, predicted, occurs: (classes, weightings), number of documents that are correctly predicted as the class,
            predicted as the class, and labeled with it.
        label_names: the classes.
    """
    figures: Figures = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, whole in (("precision", predicted), ("recall", occurs)):
            share = np.where(whole > 0, hits / whole, undefined)
            figures |= {f"{name}/{label}": share[c] for c, label in enumerate(label_names)}
    return figures


def group_sums(groups: np.ndarray, count: int, weights: np.ndarray) -> np.ndarray:
    """Sums of ``weights`` (documents, weightings) over each group, (count, weightings).

    ``groups``: int64 (documents,), from 0 on; a document of group -1 is in none.
    """
    if count <= MATRIX_GROUPS:
        members = (groups == np.arange(count)[:, None]).astype(np.float64)  # (count, documents)
        sums: np.ndarray = members @ weights
        return sums
    sums = np.zeros((count, weights.shape[1]))
    order = np.argsort(groups, kind="stable")
    order = order[np.searchsorted(groups[order], 0) :]
    if len(order):
        there, starts = np.unique(groups[order], return_index=True)
        sums[there] = np.add.reduceat(weights[order], starts, axis=0)
    return sums


def _correlation(hits: np.ndarray, occurs: np.ndarray, predicted: np.ndarray, undefined: float) -> np.ndarray:
    """Matthews' correlation for any number of classes (Gorodkin 2004), (weightings,).

    Args:
        hits: (weightings,), number of correctly predicted documents.
        occurs, predicted: (classes, weightings), number of documents by label and by prediction.
        undefined: the value if only one class occurs, or only one is predicted.
    """
    size = occurs.sum(0)
    covariance = hits * size - (occurs * predicted).sum(0)
    spread = (size**2 - (predicted**2).sum(0)) * (size**2 - (occurs**2).sum(0))
    correlation: np.ndarray = np.where(spread > 0, covariance / np.sqrt(spread), undefined)
    return correlation


def _calibration_error(p: Predictions, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The calibration error times the documents: sum over bins of |correct - sum of confidences|, (weightings,)."""
    confidence = p.probabilities.max(1).astype(np.float32)
    gap = right - confidence.astype(np.float64)
    error: np.ndarray = np.abs(group_sums(bins_of(confidence), BINS + 1, weights * gap[:, None])).sum(0)
    return error


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence, as in torchmetrics: [low, high) in float32, with a separate bin for 1."""
    bounds = torch.linspace(0, 1, BINS + 1).numpy()
    return np.searchsorted(bounds, confidence.astype(np.float32), side="right") - 1


def _mean_auroc(p: Predictions, occurs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of each class against the rest, averaged over the classes that occur, (weightings,); NaN if one does."""
    total = np.zeros(weights.shape[1])
    for c in np.unique(p.labels):
        total += np.nan_to_num(auroc(p.probabilities[:, c], p.labels == c, weights))
    present = (occurs > 0).sum(0)
    return np.where(present > 1, total / present, np.nan)


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of pairs of a positive and a negative document that the scores order correctly; ties count half.

    Args:
        scores: (documents,).
        positive: bool (documents,).
        weights: (documents, weightings).

    Returns:
        (weightings,), NaN where there is no pair.
    """
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(scores[negatives])]
    below = np.zeros((len(negatives) + 1, weights.shape[1]))  # row k: the weight of the k lowest negatives
    np.cumsum(weights[negatives], axis=0, out=below[1:])
    first, last = (np.searchsorted(scores[negatives], scores[positive], side=side) for side in ("left", "right"))
    own = weights[positive]
    pairs = own.sum(0) * below[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share: np.ndarray = np.einsum("dw,dw->w", own, below[first] + below[last]) / (2 * pairs)
    return share
