"""The probability from which each label is predicted, chosen by the label's F1; for several models, the mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_sft.errors import UserError

DEFAULT = 0.5
ONE_KIND = "an ensemble is of models with one label a document, or of models with any number"


def best_thresholds(probabilities: Tensor, labels: Tensor) -> list[float]:
    """For each label, the threshold with the highest F1 on these documents.

    The search is exact: all thresholds between two neighbouring scores of a label, or below the lowest score, predict
    the same, so only the midpoints (and half the lowest score) are tried. Among equally good thresholds, the one
    nearest to 0.5 is chosen. A label that no document has keeps 0.5.

    Args:
        probabilities: (documents, classes), in [0, 1].
        labels: (documents, classes), 1 where a label applies.
    """
    scores, order = probabilities.detach().cpu().double().sort(0, descending=True)  # (documents, classes)
    if not len(scores):
        return [DEFAULT] * scores.shape[1]
    applies = labels.cpu().double().gather(0, order)
    # the k documents of the highest scores
    taken = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device).unsqueeze(1)
    f1 = 2 * applies.cumsum(0) / (taken + applies.sum(0))  # (documents, classes): 2 TP / (predicted + actual)
    below = torch.cat([scores[1:], torch.zeros_like(scores[:1])])
    last = taken == len(scores)
    f1 = f1.where((scores > below) | last, -1.0)  # no threshold can separate documents with equal scores
    midpoints = (scores + below) / 2  # exact in float64 for scores of float32
    distance = (midpoints - DEFAULT).abs().where(f1 == f1.amax(0), torch.inf)
    best = midpoints.gather(0, distance.argmin(0, keepdim=True)).squeeze(0)  # (classes,)
    return [float(t) for t in best.where((applies.sum(0) > 0) & best.isfinite(), DEFAULT)]


def applying(probabilities: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Which labels apply: probabilities (documents, classes) -> bool (documents, classes), on the CPU."""
    # (classes,); float64, since float32 has no number between two neighbours; on the CPU, whatever the default device
    limits = torch.tensor(thresholds, dtype=torch.float64, device="cpu")
    return probabilities.detach().cpu().double() >= limits


def chosen(probabilities: Tensor, thresholds: Sequence[float] | None) -> Tensor:
    """The predictions for probabilities (documents, classes).

    Without thresholds int64 (documents,), the most probable class; with thresholds uint8 (documents, classes), 1 where
    a label is predicted.
    """
    return probabilities.argmax(1) if thresholds is None else applying(probabilities, thresholds).to(torch.uint8)


def column_order(names: list[str], others: list[str]) -> list[int]:
    """For each class in ``names``, its index in ``others``, the classes of another model.

    Raises:
        UserError: if the two have different classes.
    """
    if sorted(names) != sorted(others):
        raise UserError(f"an ensemble is of models with the same labels, not {names} and {others}")
    return [others.index(name) for name in names]


def mean_thresholds(thresholds: Sequence[list[float] | None], orders: Sequence[list[int]]) -> list[float] | None:
    """The mean of the models' thresholds, reordered by each model's ``orders``; None if a document has one label."""
    given = [[own[place] for place in order] for own, order in zip(thresholds, orders, strict=True) if own is not None]
    return np.mean(given, axis=0).tolist() if given else None
