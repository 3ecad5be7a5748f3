"""Supervised fine-tuning: cross-entropy with the labels, binary for two classes and for multi-label data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_sft.models.encoder import LSTMState
from lit_sft.models.heads import at_least_float32
from lit_sft.models.network import Network
from lit_sft.objectives.base import Loss, Objective
from lit_sft.objectives.penalties import Penalties
from lit_sft.objectives.reading import Reading

NO_LABEL = -1


class Supervised(Objective):
    """Mean cross-entropy of the labels in nats.

    One class out of all: L = sum_i w_i l_i / sum_i w_i over documents. Two classes: l = -[y log p + (1 - y) log(1 - p)]
    with p the sigmoid of one logit; more: l = -log softmax. w_i is the weight of document i's class; multiplying all
    weights by a factor changes nothing.

    Multi-label: the mean over documents of the mean over labels of l = -[w y log p + (1 - y) log(1 - p)], p the sigmoid
    of the label's own logit; w weights the documents that have the label relative to those that don't.

    A document with the label -1 is ignored; a batch of such documents gives a loss of 0, with gradients of 0.

    Args:
        label_smoothing: s in [0, 1); the target becomes (1 - s) y + s / num_classes, in the binary forms
            (1 - s) y + s / 2.
        class_weights: w by class, at least 0. "balanced" and "sqrt" compute them from the training documents' labels,
            see `weights_by_counts`. None: all 1.
        activation_penalty, temporal_penalty: strengths of AWD-LSTM's penalties on the last layer's output, see
            `Penalties`; they are not part of the loss reported as "supervised".

    Raises:
        ValueError: if values are outside these ranges; in `see_counts`, if the number of class_weights is not the
            number of classes.
    """

    batches = frozenset({"labeled"})
    heads = frozenset({"classifier"})

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced", "sqrt"] | list[float] | None = None,
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
    ) -> None:
        super().__init__()  # of nn.Module, if a subclass is one, too
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be at least 0 and less than 1")
        if isinstance(class_weights, str) and class_weights not in ("balanced", "sqrt"):
            raise ValueError(f"class_weights={class_weights!r} is neither balanced nor sqrt nor a list")
        if isinstance(class_weights, list) and (min(class_weights, default=-1.0) < 0 or sum(class_weights) <= 0):
            raise ValueError(f"class_weights={class_weights} must be at least 0, and not all 0")
        self.penalties = Penalties(activation_penalty, temporal_penalty)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self._by_counts: list[float] | None = None
        self._weights: Tensor | None = None  # (num_classes,), kept on the device, since a copy would wait

    def see_counts(self, counts: Sequence[int], documents: int, multilabel: bool) -> None:
        """Take "balanced" or "sqrt" weights from the training documents.

        Raises:
            ValueError: weights in a list that hasn't one for each class.
        """
        if isinstance(self.class_weights, list) and len(self.class_weights) != len(counts):
            given = len(self.class_weights)
            raise ValueError(f"class_weights has {given} values, but there are {len(counts)} classes")
        if isinstance(self.class_weights, str):
            self._by_counts, self._weights = weights_by_counts(counts, documents, multilabel, self.class_weights), None

    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """`batch["labeled"]`: input_ids, attention_mask (batch, time), labels as in `loss`. No state is used."""
        return self.of_reading(Reading.of(network, batch["labeled"]))

    def of_reading(self, reading: Reading, supervised: Tensor | None = None) -> Loss:
        """The loss of labeled documents after their clean pass; `supervised`: the value of `loss`, if already known."""
        logits, labels = at_least_float32(reading.logits), reading.documents.labels  # the weight is a count
        total = self.loss(logits, labels) if supervised is None else supervised
        weight = self._document_weights(logits, labels).sum()
        parts = {"supervised": total.detach()}
        if self.penalties.on:
            counted = reading.documents.attention_mask.bool() & _labeled(labels).unsqueeze(1)  # (batch, time)
            total = self.penalties.add(total, parts, reading.encoded, counted)
        return Loss(total, parts, weight)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (batch, num_outputs) -> scalar, at least float32.

        labels (batch,) int64, the class; multi-label: (batch, num_outputs), 1 where a label applies, else 0.
        """
        logits = at_least_float32(logits)
        weights = self._document_weights(logits, labels)  # (batch,)
        if labels.ndim == 2:
            by_label = F.binary_cross_entropy_with_logits(logits, self._smoothed(labels, logits), reduction="none")
            if (by_class := self._class_weights(logits)) is not None:  # of the labels that apply, smoothed or not
                by_label = torch.where(labels > 0, by_class, 1.0) * by_label  # (batch, num_classes)
            losses = by_label.mean(-1)  # (batch,)
        elif logits.shape[-1] == 1:
            logit = logits.squeeze(-1)
            losses = F.binary_cross_entropy_with_logits(logit, self._smoothed(labels, logit), reduction="none")
        else:
            losses = F.cross_entropy(
                logits, labels, ignore_index=NO_LABEL, label_smoothing=self.label_smoothing, reduction="none"
            )  # (batch,)
        total = weights.sum()  # 0 where no document counts: then the loss is 0, and its gradients are
        return (weights * losses).sum() / total.where(total > 0, 1.0)

    def _smoothed(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Binary targets, 0 or 1, smoothed towards 1/2, in the dtype of the logits; the shape is kept."""
        return labels.clamp(min=0).to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2

    def _document_weights(self, logits: Tensor, labels: Tensor) -> Tensor:
        labeled = _labeled(labels).to(logits.dtype)  # (batch,)
        weights = None if labels.ndim == 2 else self._class_weights(logits)  # multi-label: `loss` applies them by label
        return labeled if weights is None else weights[labels.clamp(min=0)] * labeled  # (batch,)

    def _class_weights(self, logits: Tensor) -> Tensor | None:
        """(num_classes,), with the dtype and device of the logits; None if `class_weights` is None."""
        values = self._by_counts if isinstance(self.class_weights, str) else self.class_weights
        if values is None:
            if self.class_weights is not None:
                raise ValueError(f"class_weights={self.class_weights} needs see_counts before the first loss")
            return None
        weights = self._weights
        if weights is None or weights.device != logits.device or weights.dtype != logits.dtype:
            weights = self._weights = logits.new_tensor(values)
        return weights


def _labeled(labels: Tensor) -> Tensor:
    """Which documents are labeled, bool (batch,)."""
    return (labels[:, 0] if labels.ndim == 2 else labels) != NO_LABEL


def weights_by_counts(
    counts: Sequence[int], documents: int, multilabel: bool, how: Literal["balanced", "sqrt"]
) -> list[float]:
    """Class weights that grow with the rarity of a class.

    "balanced": documents / (classes * count), as in scikit-learn's `compute_class_weight`, so that all classes have the
    same total weight. Multi-label: (documents - count) / count, so that the documents with a label weigh as much as
    those without it (1 if all have it). "sqrt": the square roots of these, halfway to no weights.

    Args:
        counts: number of documents of each class.
        documents: number of documents.
        multilabel: whether any number of classes may apply to a document.

    Raises:
        ValueError: if a class has no documents.
    """
    if min(counts) < 1:
        number = list(counts).index(min(counts))
        raise ValueError(f"class_weights={how}: no training document has the label of class {number}")
    if multilabel:
        weights = [(documents - count) / count or 1.0 for count in counts]
    else:
        weights = [documents / (len(counts) * count) for count in counts]
    return weights if how == "balanced" else [weight**0.5 for weight in weights]
