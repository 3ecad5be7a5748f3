"""Entropy minimisation: makes predictions confident, also on documents without labels."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_sft.objectives.divergence import entropy
from lit_sft.objectives.reading import mean_over
from lit_sft.objectives.term import DOCUMENTS, LABELED, Step, Term


class EntMin(Term):
    """Mean entropy in nats of the predictions (Grandvalet & Bengio 2005), of labeled and unlabeled documents alike.

    With few labels the classifier can collapse to one class for every document, which has zero entropy: set
    `ramp_steps`, and watch "train/predicted_0", "train/predicted_1" and so on.

    Args:
        unlabeled: use unlabeled documents as well; if false, only the labeled ones.
        weight, ramp_steps: as in `Term`.
    """

    name = "entmin"

    def __init__(self, unlabeled: bool = True, weight: float = 1.0, ramp_steps: int = 0) -> None:
        super().__init__(weight, ramp_steps)
        if unlabeled:
            self.batches = frozenset({DOCUMENTS})

    def __call__(self, step: Step) -> tuple[Tensor, Tensor]:
        readings = [step.reading(kind) for kind in sorted({LABELED, *self.batches})]
        values = torch.cat([entropy(reading.logits, step.network.multilabel) for reading in readings])
        return mean_over(values, readings)
