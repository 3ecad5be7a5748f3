"""Supervised fine-tuning: cross-entropy with the labels, in its binary form for two classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_sft.models.encoder import LSTMState
from lit_sft.models.heads import at_least_float32
from lit_sft.models.network import Network
from lit_sft.objectives.base import Loss, Objective

NO_LABEL = -1


def num_outputs(num_classes: int) -> int:
    """Logits a document: one for two classes (that of class 1), else one a class; ValueError below two."""
    if num_classes < 2:
        raise ValueError(f"a classifier needs at least two classes, not {num_classes}")
    return 1 if num_classes == 2 else num_classes


def class_probabilities(logits: Tensor) -> Tensor:
    """Logits (batch, num_outputs) -> probabilities (batch, num_classes), at least float32."""
    logits = at_least_float32(logits)
    if logits.shape[-1] > 1:
        return logits.softmax(-1)  # (batch, num_classes)
    return torch.cat([-logits, logits], dim=-1).sigmoid()  # (batch, 2)


class Supervised(Objective):
    """Mean cross-entropy of the labels, L = sum_i w_i l_i / sum_i w_i, in nats.

    Two classes: l = -[y log p + (1 - y) log(1 - p)] with p the sigmoid of one logit; more: l = -log softmax.
    A document with the label -1 counts nothing; a batch of such gives 0, with gradients of 0.

    Args:
        label_smoothing: s in [0, 1); the target becomes (1 - s) y + s / num_classes, in the binary form
            (1 - s) y + s / 2.
        class_weights: w by class, at least 0; a document weighs as its label's class. None: all 1.

    Raises:
        ValueError: values outside these ranges; at the call, class_weights of another length than the
        classes.
    """

    batches = frozenset({"labeled"})
    heads = frozenset({"classifier"})

    def __init__(self, label_smoothing: float = 0.0, class_weights: list[float] | None = None) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be at least 0 and less than 1")
        if class_weights is not None and (min(class_weights, default=-1.0) < 0 or sum(class_weights) <= 0):
            raise ValueError(f"class_weights={class_weights} must be at least 0, and not all 0")
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self._weights: Tensor | None = None  # (num_classes,), kept on the device, since a copy would wait

    def check_classes(self, num_classes: int) -> None:
        """Raise a ValueError when there is not one class weight a class."""
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            given = len(self.class_weights)
            raise ValueError(f"class_weights has {given} values, but there are {num_classes} classes")

    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """`batch["labeled"]`: input_ids, attention_mask (batch, time), labels (batch,). There is no state."""
        documents = batch["labeled"]
        masks = network.draw_masks(len(documents.labels))
        logits = network.classify(documents, masks)  # (batch, num_outputs)
        total = self.loss(logits, documents.labels)
        weight = self._document_weights(logits, documents.labels).sum()
        return Loss(total, {"supervised": total.detach()}, weight, logits=logits.detach())

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (batch, num_outputs), labels (batch,) int64 -> scalar, at least float32."""
        logits = at_least_float32(logits)
        self.check_classes(max(2, logits.shape[-1]))
        weights = self._document_weights(logits, labels)  # (batch,)
        if logits.shape[-1] == 1:
            y = labels.clamp(min=0).to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
            losses = F.binary_cross_entropy_with_logits(logits.squeeze(-1), y, reduction="none")  # (batch,)
        else:
            losses = F.cross_entropy(
                logits, labels, ignore_index=NO_LABEL, label_smoothing=self.label_smoothing, reduction="none"
            )  # (batch,)
        return (weights * losses).sum() / weights.sum().clamp(min=torch.finfo(losses.dtype).tiny)

    def _document_weights(self, logits: Tensor, labels: Tensor) -> Tensor:
        labeled = (labels != NO_LABEL).to(logits.dtype)  # (batch,)
        if self.class_weights is None:
            return labeled
        weights = self._weights
        if weights is None or weights.device != logits.device or weights.dtype != logits.dtype:
            weights = self._weights = logits.new_tensor(self.class_weights)
        return weights[labels.clamp(min=0)] * labeled  # (batch,)
