"""KL divergence between predictions, and their entropy, in log space and for every kind of classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_sft.models.heads import at_least_float32


def log_probabilities(logits: Tensor, multilabel: bool) -> Tensor:
    """Logits (batch, num_outputs) -> log-probabilities (batch, choices, outcomes), at least float32.

    With more than two exclusive classes there is a single choice, among the classes. With two classes (one logit), or
    multi-label, there is a choice between no and yes for each logit.
    """
    logits = at_least_float32(logits)
    if logits.shape[-1] > 1 and not multilabel:
        return logits.log_softmax(-1).unsqueeze(1)  # (batch, 1, num_classes)
    return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=-1)  # (batch, num_outputs, 2)


def kl_divergence(logits: Tensor, other: Tensor, multilabel: bool = False) -> Tensor:
    """KL(p || q) in nats of each document, (batch,), where p is the prediction of `logits` and q that of `other`.

    Both are (batch, num_outputs). Multi-label: the mean over labels, as in `Supervised`. Differentiable in both.
    """
    p, q = log_probabilities(logits, multilabel), log_probabilities(other, multilabel)
    return (p.exp() * (p - q)).sum(2).mean(1)


def entropy(logits: Tensor, multilabel: bool = False) -> Tensor:
    """Entropy in nats of each document's prediction, (batch,); multi-label: the mean over labels."""
    p = log_probabilities(logits, multilabel)
    return -(p.exp() * p).sum(2).mean(1)
