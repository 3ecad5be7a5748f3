"""Counterpart of weighted.py for documents with any number of labels: the weighted figures of multilabel.py."""

from __future__ import annotations

import numpy as np

from lit_sft.evaluation.metrics import BINS
from lit_sft.evaluation.predictions import Predictions
from lit_sft.evaluation.weighted import Figures, auroc, bins_of, group_sums, precision_and_recall


def weighted_multilabel_figures(
    predictions: Predictions, weights: np.ndarray, counts_only: bool = False, undefined: float = 0.0
) -> Figures:
    """Every figure of :class:`lit_sft.evaluation.multilabel.MultilabelMetrics` under each weighting, (weightings,).

    Args:
        predictions: the predictions; ``labels`` and ``predicted`` are (documents, classes).
        weights: float64 (documents, weightings), how often each document is counted.
        counts_only: omit AUROC, average precision and calibration error, which take most of the time.
        undefined: value of a label's precision and recall if they are 0 / 0, see ``weighted_figures``.
    """
    p, size = predictions, weights.sum(0)  # (weightings,)
    hits = (p.labels & p.predicted).T @ weights  # (classes, weightings), as the next two
    occurs, predicted = p.labels.T @ weights, p.predicted.T @ weights
    with np.errstate(divide="ignore", invalid="ignore"):
        right = (p.labels == p.predicted).all(1)
        figures = {"loss": p.losses.astype(np.float64) @ weights / size, "accuracy": right @ weights / size}
        figures["micro_f1"] = np.nan_to_num(2 * hits.sum(0) / (occurs + predicted).sum(0))
        f1 = np.nan_to_num(2 * hits / (occurs + predicted))
        figures["macro_f1"] = np.nan_to_num(f1.sum(0) / (occurs + predicted > 0).sum(0))
        if not counts_only:
            figures |= _rankings(p, weights)
            figures["ece"] = _calibration_error(p, weights) / (size * len(p.label_names))
    return figures | precision_and_recall(hits, predicted, occurs, p.label_names, undefined)


def _rankings(p: Predictions, weights: np.ndarray) -> Figures:
    """AUROC and average precision, each averaged over the labels for which it is defined, (weightings,)."""
    found = {}
    for name, measure in (("auroc", auroc), ("average_precision", average_precision)):
        labels = zip(p.probabilities.T, p.labels.T == 1, strict=True)
        values = np.array([measure(scores, positive, weights) for scores, positive in labels])  # (classes, weightings)
        found[name] = np.nansum(values, 0) / (~np.isnan(values)).sum(0)
    return found


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean precision, weighted by the gain in recall at each score; documents of equal score are taken together.

    Args:
        scores: (documents,).
        positive: bool (documents,).
        weights: (documents, weightings).

    Returns:
        (weightings,), NaN where nothing is positive.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last document of each score
    taken = np.cumsum(weights[order], axis=0)[ends]  # (scores, weightings), as the next
    hits = np.cumsum(weights[order] * positive[order, None], axis=0)[ends]
    with np.errstate(divide="ignore", invalid="ignore"):
        gained = np.diff(hits, axis=0, prepend=0.0)
        mean: np.ndarray = (gained * np.nan_to_num(hits / taken)).sum(0) / hits[-1]
    return mean


def _calibration_error(p: Predictions, weights: np.ndarray) -> np.ndarray:
    """Sum over the bins of |labels that apply - sum of probabilities|, over all documents and labels, (weightings,)."""
    gaps = np.zeros((BINS + 1, weights.shape[1]))
    for probabilities, labels in zip(p.probabilities.T, p.labels.T, strict=True):
        gap = labels - probabilities.astype(np.float32).astype(np.float64)
        gaps += group_sums(bins_of(probabilities), BINS + 1, weights * gap[:, None])
    total: np.ndarray = np.abs(gaps).sum(0)
    return total
