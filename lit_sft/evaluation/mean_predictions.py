"""The mean of several classifiers' predictions, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_sft.errors import UserError
from lit_sft.evaluation.predictions import Predictions
from lit_sft.evaluation.thresholds import ONE_KIND, chosen, column_order, mean_thresholds


def mean_predictions(
    members: Sequence[Predictions], thresholds: Sequence[list[float] | None]
) -> tuple[Predictions, list[float] | None]:
    """Predictions from the mean of the members' probabilities, and the thresholds used for them.

    A document is clean if it is clean for all members; ``clean`` is None if it is None for any member.

    Args:
        members: each member's predictions of the same documents; the classes are put in the order of the first's.
        thresholds: each member's thresholds; None if a document has one label.

    Raises:
        UserError: if a member's documents or labels differ from those of the first.
    """
    first = members[0]
    orders = [column_order(first.label_names, member.label_names) for member in members]
    for member, order in zip(members[1:], orders[1:], strict=True):
        _check_same_documents(first, member, order)
    stacked = [member.probabilities[:, order] for member, order in zip(members, orders, strict=True)]
    probabilities = torch.from_numpy(np.mean(stacked, axis=0, dtype=np.float64).astype(np.float32))
    limits = mean_thresholds(thresholds, orders)
    losses = document_losses(probabilities, torch.from_numpy(first.labels))
    flags = [member.clean for member in members if member.clean is not None]
    clean = np.logical_and.reduce(flags) if len(flags) == len(members) else None
    predicted = chosen(probabilities, limits).numpy()
    mean = replace(first, probabilities=probabilities.numpy(), predicted=predicted, losses=losses.numpy(), clean=clean)
    return mean, limits


def _check_same_documents(first: Predictions, member: Predictions, order: list[int]) -> None:
    if first.multilabel != member.multilabel:
        raise UserError(ONE_KIND)
    same = len(first) == len(member) and np.array_equal(first.documents, member.documents)
    if not same or not np.array_equal(first.keys, member.keys):
        raise UserError("the models are measured on different documents: name them, with --data.test or --data.val")
    labels = member.labels[:, order] if member.multilabel else np.argsort(order)[member.labels]
    if not np.array_equal(first.labels, labels):
        raise UserError("the models' documents have different labels")


def document_losses(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each document in nats, (batch,); multi-label: the mean of the labels' binary cross-entropies.

    Args:
        probabilities: (batch, classes).
        labels: (batch,), or, multi-label, (batch, classes).
    """
    if labels.ndim == 2:
        return F.binary_cross_entropy(probabilities, labels.to(probabilities.dtype), reduction="none").mean(1)
    return -probabilities.gather(1, labels[:, None]).squeeze(1).clamp_min(1e-12).log()
