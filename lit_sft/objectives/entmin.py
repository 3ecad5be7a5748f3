"""Entropy minimisation: predictions are to be sure, on documents without labels too."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_sft.objectives.divergence import entropy
from lit_sft.objectives.reading import mean_over
from lit_sft.objectives.term import DOCUMENTS, LABELED, Step, Term


class EntMin(Term):
    """Mean entropy in nats of the predictions (Grandvalet & Bengio 2005), of labeled and unlabeled documents alike.

    With few labels it can end with one class for everything, which is perfectly sure: give it `ramp_steps`, and look at
    "train/predicted_0" and so on.

    Args:
        unlabeled: take unlabeled documents, too; false: the labeled ones alone.
        weight, ramp_steps: as `Term` has them.
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
